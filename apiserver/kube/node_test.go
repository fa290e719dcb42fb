package kube_test

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestStolenNode: with the certificate of node n1 everything is tried, over the wire: of
// each kind every verb on every object. What is not the node's own is refused; what is,
// and what it names, it gets.
func TestStolenNode(t *testing.T) {
	s := start(t)
	mine := func(path string) bool { // what n1 may have of the objects below, by GET
		for _, own := range []string{
			"/api/v1/nodes/n1", "/api/v1/namespaces/default/pods/mine", "/api/v1/namespaces/default/secrets/mine",
			"/api/v1/namespaces/default/configmaps/mine", "/api/v1/namespaces/default/serviceaccounts/default",
		} {
			if strings.TrimSuffix(path, "/status") == own {
				return true
			}
		}
		return false
	}
	for name, node := range map[string]string{"mine": "n1", "theirs": "n2"} {
		s.want(201, "POST", "/api/v1/namespaces/default/secrets", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"`+name+`"},"stringData":{"password":"canary-`+name+`"}}`)
		s.want(201, "POST", "/api/v1/namespaces/default/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"`+name+`"},"data":{"a":"canary-`+name+`"}}`)
		s.want(201, "POST", "/api/v1/nodes", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"`+node+`"},"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}`)
		s.want(201, "POST", "/api/v1/namespaces/default/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"`+name+`","labels":{"canary":"`+name+`"}},"spec":{"nodeName":"`+node+`",
			"containers":[{"name":"c","image":"i","envFrom":[{"secretRef":{"name":"`+name+`"}},{"configMapRef":{"name":"`+name+`"}}]}]}}`)
	}
	s.want(201, "POST", "/api/v1/namespaces/default/serviceaccounts", `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}`)
	s.want(201, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"theirs"},"rules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}]}`)

	// Discovery is for everybody: it says where everything is.
	tried, seen := 0, 0
	groups := []string{"/api/v1"}
	for _, g := range s.want(200, "GET", "/apis", "").at("groups").([]any) {
		groups = append(groups, "/apis/"+g.(map[string]any)["preferredVersion"].(map[string]any)["groupVersion"].(string))
	}
	for _, root := range groups {
		list := s.want(200, "GET", root, "").at("resources").([]any)
		for _, r := range list {
			r := r.(map[string]any)
			plural, sub, _ := strings.Cut(r["name"].(string), "/")
			if strings.HasSuffix(plural, "reviews") { // about itself, or for whom a role allows it
				continue
			}
			base := root + "/" + plural
			if r["namespaced"].(bool) {
				base = root + "/namespaces/default/" + plural
			}
			if sub == "" {
				for _, method := range []string{"GET", "DELETE"} {
					tried++
					if a := s.request(s.node, method, base, ""); a.code != 403 && a.code != 405 {
						t.Errorf("%s %s: %v", method, base, a)
					}
				}
				tried++
				if a := s.request(s.node, "POST", base, `{"apiVersion":"`+strings.TrimPrefix(strings.TrimPrefix(root, "/api/"), "/apis/")+`","kind":"`+r["kind"].(string)+`","metadata":{"name":"made"}}`); a.code != 403 && a.code != 405 && a.code != 422 && a.code != 400 {
					t.Errorf("POST %s: %v", base, a)
				}
			}
			for _, name := range []string{"n1", "n2", "mine", "theirs", "default", "kube-root-ca.crt"} {
				path := base + "/" + name
				if sub != "" {
					path += "/" + sub
				}
				tried++
				a := s.request(s.node, "GET", path, "")
				if a.code == 200 {
					seen++
				}
				if strings.Contains(string(a.body), "canary-theirs") || a.code == 200 && !mine(path) || mine(path) && a.code != 200 && a.code != 405 {
					t.Errorf("GET %s: %v", path, a)
				}
				for _, method := range []string{"PUT", "PATCH", "DELETE", "POST"} {
					if mine(path) && (plural == "nodes" || plural == "pods") {
						continue // below
					}
					tried++
					headers, body := []string{"Content-Type: application/merge-patch+json"}, `{"metadata":{"labels":{"a":"b"}}}`
					if method != "PATCH" {
						headers = nil
						body = `{"apiVersion":"` + strings.TrimPrefix(strings.TrimPrefix(root, "/api/"), "/apis/") + `","kind":"` + r["kind"].(string) + `","metadata":{"name":"` + name + `"}}`
					}
					if method == "DELETE" {
						body = ""
					}
					if a := s.request(s.node, method, path, body, headers...); a.code < 400 {
						t.Errorf("%s %s: %v", method, path, a)
					}
				}
			}
		}
	}
	if tried < 500 || seen < 5 {
		t.Errorf("%d requests, %d of them brought something", tried, seen)
	}

	node := func(code int, text, method, path, body string, headers ...string) {
		t.Helper()
		if a := s.request(s.node, method, path, body, headers...); a.code != code || !strings.Contains(string(a.body), text) {
			t.Errorf("%s %s: %v, want %d with %q", method, path, a, code, text)
		}
	}
	merge := "Content-Type: application/merge-patch+json"
	node(200, `"name":"mine"`, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", "")
	node(403, "its own pods only", "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", "")
	node(403, "its own pods only", "GET", "/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1", "")
	node(403, "one by one", "GET", "/api/v1/secrets", "")
	node(200, "", "PATCH", "/api/v1/nodes/n1", `{"metadata":{"labels":{"disk":"ssd"}}}`, merge)
	node(403, "label node-role.kubernetes.io/master", "PATCH", "/api/v1/nodes/n1", `{"metadata":{"labels":{"node-role.kubernetes.io/master":""}}}`, merge)
	node(403, "own taints", "PATCH", "/api/v1/nodes/n1", `{"spec":{"taints":null}}`, merge)
	node(403, "spec of its Node", "PATCH", "/api/v1/nodes/n1", `{"spec":{"unschedulable":true}}`, merge)
	node(403, "not its own Node", "PATCH", "/api/v1/nodes/n2/status", `{"status":{"phase":"Running"}}`, merge)
	node(200, "", "PATCH", "/api/v1/namespaces/default/pods/mine/status", `{"status":{"message":"seen"}}`, merge)
	node(403, "changes only the status", "PATCH", "/api/v1/namespaces/default/pods/mine", `{"metadata":{"labels":{"a":"b"}}}`, merge)
	node(403, "does not run on this node", "PATCH", "/api/v1/namespaces/default/pods/theirs/status", `{"status":{"message":"no"}}`, merge)
	node(403, "does not run on this node", "DELETE", "/api/v1/namespaces/default/pods/theirs", "")
	node(403, "makes no pods but mirrors", "POST", "/api/v1/namespaces/default/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"mine-too"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","envFrom":[{"secretRef":{"name":"theirs"}}]}]}}`)
	node(403, "makes no pods but mirrors", "POST", "/api/v1/namespaces/default/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"mine-too","annotations":{"kubernetes.io/config.mirror":"a"}},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","envFrom":[{"secretRef":{"name":"theirs"}}]}]}}`)
	node(403, "", "POST", "/api/v1/namespaces/default/pods/theirs/exec?command=id", "")
	node(403, "", "GET", "/api/v1/namespaces/default/pods/mine/log", "")
	node(403, "", "POST", "/api/v1/namespaces/default/serviceaccounts/default/token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`)

	if a := s.do("GET", "/api/v1/nodes/n1", ""); a.at("metadata.labels.disk") != "ssd" || a.at("spec.taints.0.key") != "a" {
		t.Errorf("the node is %v", a)
	}
	if a := s.do("GET", "/api/v1/namespaces/default/pods/theirs", ""); a.at("status.message") != nil || a.at("metadata.deletionTimestamp") != nil {
		t.Errorf("the other's pod is %v", a)
	}
}

// TestNodeWatch: a node's watch of a Secret tells what it was while a pod on the node
// named it, and ends when none does; not one change later.
func TestNodeWatch(t *testing.T) {
	s := start(t)
	secret := func(method, path, value string) answer {
		return s.do(method, "/api/v1/namespaces/default/secrets"+path, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"stringData":{"password":"`+value+`"}}`)
	}
	secret("POST", "", "first")
	const watch = "/api/v1/namespaces/default/secrets?watch=true&fieldSelector=metadata.name%3Ds"
	if a := s.request(s.node, "GET", watch, ""); a.code != 403 {
		t.Fatalf("before the pod: %v", a)
	}
	before := s.do("GET", "/api/v1/namespaces/default/secrets/s", "").at("metadata.resourceVersion").(string)
	s.want(201, "POST", "/api/v1/namespaces/default/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"n1","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"i","envFrom":[{"secretRef":{"name":"s"}}]}]}}`)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	open := func(path string) *bufio.Scanner {
		req, err := http.NewRequestWithContext(ctx, "GET", s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.node.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewScanner(resp.Body)
	}
	lines := open(watch)
	if !lines.Scan() || !strings.Contains(lines.Text(), "Zmlyc3Q=") {
		t.Fatalf("first: %s, %v", lines.Text(), lines.Err())
	}
	secret("PUT", "/s", "second")
	if !lines.Scan() || !strings.Contains(lines.Text(), "c2Vjb25k") {
		t.Fatalf("second: %s, %v", lines.Text(), lines.Err())
	}
	s.want(200, "PATCH", "/api/v1/namespaces/default/pods/p/status", `{"status":{"phase":"Succeeded"}}`, "Content-Type: application/merge-patch+json")
	secret("PUT", "/s", "third")
	for lines.Scan() {
		if strings.Contains(lines.Text(), "dGhpcmQ=") {
			t.Fatalf("after the pod: %s", lines.Text())
		}
	}
	if ctx.Err() != nil {
		t.Fatal("the watch does not end with the pod")
	}

	// Nor does history bring what was not the node's: the Secret is as it was before the pod.
	s.want(201, "POST", "/api/v1/namespaces/default/pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","envFrom":[{"secretRef":{"name":"s"}}]}]}}`)
	lines = open(watch + "&resourceVersion=" + before)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "c2Vjb25k") || strings.Contains(lines.Text(), "dGhpcmQ=") {
			t.Fatalf("out of history: %s", lines.Text())
		}
		if strings.Contains(lines.Text(), "ERROR") {
			break
		}
	}
}
