package object

import (
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/strfmt"
)

// TestStringFormats compares each format with Kubernetes' own, on strings that have it,
// on pieces and neighbors of such strings, and on random ones.
func TestStringFormats(t *testing.T) {
	samples := strings.FieldsFunc(`0123456789abcdef01234567|https://example.com/a?b=c|/path|a@example.com|A <a@b.c>|example.com|a.b-c.de|a_b.c|ex ample.com
10.0.0.1|010.0.0.1|10.0.0.300|fe80::1|::ffff:1.2.3.4|10.0.0.0/8|fe80::/64|01:23:45:67:89:ab|0123.4567.89ab|01-23-45-67-89-ab
6ba7b810-9dad-11d1-80b4-00c04fd430c8|6BA7B8109DAD31D180B400C04FD430C8|6ba7b810-9dad-41d1-80b4-00c04fd430c8|6ba7b810-9dad-51d1-90b4-00c04fd430c8
0-306-40615-2|0-8044-2957-X|978-0-306-40615-7|978 0 306 40615 7|4111 1111 1111 1111|5500-0000-0000-0004|371449635398431|078-05-1120|078 05 1120|078051120
#fff|#a1B2c3|fff|rgb(0, 128,255)|rgb(0,0,256)|aGVsbG8=|aGVsbG8|YWJj|2024-02-29|2023-02-29|1h30m|3 days|4 microseconds|5 parsecs|99999999999999999999 s|12 WEEKS
2024-02-29T12:30:59Z|2024-02-29t23:59:59.123+02:00|2024-02-29T24:00:00Z|2024-02-29 12:00:00Z|2024-02-29T12:00:00Zt|my-name|my-name.example|-a|a-|A.b|secret||é.com|☃.net`, func(r rune) bool { return r == '|' || r == '\n' })
	samples = append(samples, "")
	samples = append(samples, strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a.", 126)+"a", strings.Repeat("a.", 127)+"a", strings.Repeat("a.", 130)+"ab")
	random := rand.New(rand.NewPCG(1, 2))
	const letters = "0123456789abcdefxyzXTZ-:. /#%()µé"
	for _, s := range samples[:len(samples):len(samples)] {
		runes := []rune(s)
		for range 40 {
			changed := append([]rune(nil), runes...)
			for range 1 + random.IntN(2) {
				at := random.IntN(len(changed) + 1)
				switch r := []rune(letters)[random.IntN(len([]rune(letters)))]; {
				case at == len(changed):
					changed = append(changed, r)
				case random.IntN(2) == 0:
					changed = append(changed[:at], changed[at+1:]...)
				default:
					changed[at] = r
				}
			}
			samples = append(samples, string(changed))
		}
	}
	for name, valid := range stringFormats {
		if !strfmt.Default.ContainsName(name) {
			t.Errorf("Kubernetes has no format %s", name)
		}
		agreed := 0
		for _, s := range samples {
			want := strfmt.Default.Validates(name, s)
			if got := valid(s); got != want {
				t.Errorf("%s: %q is valid: %v, want %v", name, s, got, want)
			}
			if want {
				agreed++
			}
		}
		if agreed == 0 {
			t.Errorf("%s: no sample has the format", name)
		}
	}
}
