package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/holdfast-io/holdfast/agent/netstate/netstatetest"
	"github.com/holdfast-io/holdfast/internal/golden"
)

var testServers = []netip.Addr{netip.MustParseAddr("169.254.20.10")}

// TestAnswer runs testdata/answer/*.txtar: objects, and questions with their answers.
func TestAnswer(t *testing.T) {
	golden.Run(t, "testdata/answer/*.txtar", func(t *testing.T, in golden.Input) string {
		zone := NewZone(netstatetest.Parse(t, in.File("objects")), testServers)
		var out strings.Builder
		for line := range strings.Lines(string(in.File("questions"))) {
			name, kind, ok := strings.Cut(strings.TrimSpace(line), " ")
			if !ok {
				t.Fatalf("question %q: want NAME TYPE", line)
			}
			qtype, known := dns.StringToType[kind]
			if !known {
				t.Fatalf("question %q: no such type", line)
			}
			q := dns.Question{Name: dns.Fqdn(name), Qtype: qtype, Qclass: dns.ClassINET}
			fmt.Fprintf(&out, "%s %s: ", name, kind)
			reply, ours := zone.Answer(q)
			if !ours {
				out.WriteString("forward\n")
				continue
			}
			out.WriteString(dns.RcodeToString[reply.Rcode] + "\n")
			for i, section := range [][]dns.RR{reply.Answer, reply.Extra, reply.Authority} {
				for _, rr := range section {
					fmt.Fprintf(&out, "    %s%s\n", []string{"", "also ", "says "}[i], strings.ReplaceAll(rr.String(), "\t", " "))
				}
			}
			if reply.Chase != "" {
				fmt.Fprintf(&out, "    then %s of %s\n", kind, reply.Chase)
			}
		}
		return out.String()
	})
}
