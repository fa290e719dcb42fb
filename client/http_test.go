package client

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// plainly lets peers answer requests under /plain with their name, the method and
// the body that came.
func plainly(peers []*testPeer) {
	for _, p := range peers {
		p.plain = func(w http.ResponseWriter, r *http.Request) {
			p.calls.Add(1)
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			fmt.Fprintf(w, "%s %s %s", p.name, r.Method, body)
		}
	}
}

// ask sends a request to whichever peer answers.
func ask(t *testing.T, c *Client, method, body string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://anywhere.example/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: c.HTTP()}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return string(answer), err
}

// TestHTTPFailsOver: requests of other dialects go to the peer in use, and to another
// one once that has died, whole.
func TestHTTPFailsOver(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	plainly(peers)
	c := newTestClient(t, ca, addresses(peers))
	first, err := ask(t, c, http.MethodGet, "")
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(first, " ")
	byName(t, peers, name).Kill()
	other := "p1"
	if name == "p1" {
		other = "p2"
	}
	for _, tc := range []struct{ method, body string }{{http.MethodPost, "all of it"}, {http.MethodGet, ""}, {http.MethodPut, "again"}} {
		got, err := ask(t, c, tc.method, tc.body)
		if want := other + " " + tc.method + " " + tc.body; err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", tc.method, got, err, want)
		}
	}
}

// TestHTTPRepeatsNoWrite: a request that a peer has got whole before it died is
// repeated if its method changes nothing, and never otherwise.
func TestHTTPRepeatsNoWrite(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodDelete, http.MethodGet} {
		t.Run(method, func(t *testing.T) {
			ca := testCA(t)
			peers := startPeers(t, ca, 2)
			plainly(peers)
			c := newTestClient(t, ca, addresses(peers))
			if _, err := ask(t, c, http.MethodGet, ""); err != nil {
				t.Fatal(err)
			}
			dying := peers[0]
			if c.Peer() != dying.addr {
				dying = peers[1]
			}
			dying.plain = func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.ReadAll(r.Body)
				dying.calls.Add(1)
				go dying.Kill()
				<-r.Context().Done()
			}
			before := totalCalls(peers)
			got, err := ask(t, c, method, "once")
			calls := totalCalls(peers) - before
			if method == http.MethodGet {
				if err != nil || calls != 2 || strings.HasPrefix(got, dying.name) {
					t.Errorf("got %q, %v after %d calls; want the other peer's answer after 2", got, err, calls)
				}
				return
			}
			if err == nil || calls != 1 {
				t.Errorf("got %q, %v after %d calls; want an error after 1: nobody knows what became of it", got, err, calls)
			}
		})
	}
}

// TestHTTPUpgrades: a request to switch protocols gets a connection of its own, to a
// peer that is alive.
func TestHTTPUpgrades(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	peers[0].Kill()
	peers[1].plain = func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 || r.Header.Get("Upgrade") != "echo" {
			http.Error(w, "want an upgrade in HTTP/1.1", http.StatusBadRequest)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, err := buffered.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprintf(conn, "%s says %s", peers[1].name, line)
	}
	c := newTestClient(t, ca, addresses(peers))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://anywhere.example/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := c.HTTP().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stream, ok := resp.Body.(io.ReadWriter)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		t.Fatalf("answered %s, a stream: %t", resp.Status, ok)
	}
	fmt.Fprint(stream, "hello\n")
	if line, err := bufio.NewReader(stream).ReadString('\n'); err != nil || line != "p2 says hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}
