package main

import (
	"fmt"
	"testing"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestTraceRequest: how both ends of a connection are given.
func TestTraceRequest(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"pod/web", "service/db:5432", "/web -> service /db port 5432"},
		{"po/shop/web", "svc/lab/db:sql", "shop/web -> service lab/db port sql"},
		{"pod/web", "pod/db-0:80", "/web -> pod /db-0 port 80"},
		{"pod/web", "10.9.8.7:443", "/web -> address 10.9.8.7 port 443"},
		{"pod/web", "[fd00::1]:443", "/web -> address fd00::1 port 443"},
		{"web", "service/db:80", `"web": want a pod that would connect, such as pod/web`},
		{"pod/web", "service/db", `"service/db": want where to and a port, such as service/db:5432, pod/db-0:5432 or 10.9.8.7:443`},
		{"pod/web", "deployment/db:80", `"deployment/db:80": want service/NAME, pod/NAME or an address before the port`},
	} {
		req, err := traceRequest(c.from, c.to)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			kind, name := "address", req.GetAddress()
			switch req.GetTo().(type) {
			case *holdfastv1.TraceRequest_Service:
				kind, name = "service", req.GetToNamespace()+"/"+req.GetService()
			case *holdfastv1.TraceRequest_ToPod:
				kind, name = "pod", req.GetToNamespace()+"/"+req.GetToPod()
			}
			got = fmt.Sprintf("%s/%s -> %s %s port %s", req.GetNamespace(), req.GetPod(), kind, name, req.GetPort())
		}
		if got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.from, c.to, got, c.want)
		}
	}
}
