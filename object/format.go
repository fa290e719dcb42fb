package object

import (
	"encoding/hex"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	netutils "k8s.io/utils/net"
)

// stringFormats are the formats of custom objects' strings that Kubernetes checks, as
// k8s.io/kube-openapi/pkg/validation/strfmt does; others are words for people. That
// package is not used: to prepare its patterns took half of the time in which the
// command line starts, whatever it was asked for. A test holds the two together.
var stringFormats = map[string]func(string) bool{
	"bsonobjectid": isObjectID,
	"uri":          func(s string) bool { _, err := url.ParseRequestURI(s); return err == nil },
	"email":        func(s string) bool { a, err := mail.ParseAddress(s); return err == nil && a.Address != "" },
	"hostname":     isHostname,
	"ipv4":         func(s string) bool { return netutils.ParseIPSloppy(s) != nil && strings.Contains(s, ".") },
	"ipv6":         func(s string) bool { ip, err := netip.ParseAddr(s); return err == nil && ip.Is6() && ip.Zone() == "" },
	"cidr":         func(s string) bool { _, _, err := netutils.ParseCIDRSloppy(s); return err == nil },
	"mac":          matching(`(?i)^(?:` + hardwareAddress(":") + `|` + hardwareAddress("-") + `|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}(?:\.[0-9a-f]{4}(?:(?:\.[0-9a-f]{4}){6})?)?|[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{40})$`),
	"uuid":         matching(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$`),
	"uuid3":        matching(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$`),
	"uuid4":        matching(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$`),
	"uuid5":        matching(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$`),
	"isbn":         func(s string) bool { return isISBN10(s) || isISBN13(s) },
	"isbn10":       isISBN10,
	"isbn13":       isISBN13,
	"creditcard":   isCreditCard,
	"ssn":          func(s string) bool { return len(s) == 11 && socialNumber(s) },
	"hexcolor":     matching(`^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$`),
	"rgbcolor":     matching(`^rgb\(\s*` + colorValue + `\s*,\s*` + colorValue + `\s*,\s*` + colorValue + `\s*\)$`),
	"byte":         matching(`^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$`),
	"password":     func(string) bool { return true },
	"date":         isDate,
	"duration":     isDuration,
	"datetime":     isDateTime,
	"k8sshortname": func(s string) bool { return len(s) <= 63 && shortName(s) },
	"k8slongname":  func(s string) bool { return len(s) <= 253 && longName(s) },
}

const (
	colorValue = `(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])`
	namePart   = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
)

var (
	hostname = matching(`^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|` +
		`([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$`)
	socialNumber = matching(`^\d{3}[- ]?\d{2}[- ]?\d{4}$`)
	shortName    = matching(`^` + namePart + `$`)
	longName     = matching(`^` + namePart + `(\.` + namePart + `)*$`)
	cardNumber   = matching(`^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|` +
		`3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$`)
	dayTime = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$`)
	})
	durationPart = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`((\d+)\s*([A-Za-zµ]+))`) })
)

// hardwareAddress is the pattern of 6, 8 or 20 bytes, as net.ParseMAC takes them.
func hardwareAddress(separator string) string {
	next := "(?:" + separator + "[0-9a-f]{2})"
	return "[0-9a-f]{2}" + next + "{5}(?:" + next + "{2}(?:" + next + "{12})?)?"
}

// matching reports whether a string matches a pattern, which is compiled when it is
// first needed.
func matching(pattern string) func(string) bool {
	compiled := sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
	return func(s string) bool { return compiled().MatchString(s) }
}

func isObjectID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 12
}

func isHostname(s string) bool {
	if !hostname(s) || len(s) > 255 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if len(part) > 63 {
			return false
		}
	}
	return true
}

func isDate(s string) bool {
	_, err := time.Parse(time.DateOnly, s)
	return err == nil
}

func isDateTime(s string) bool {
	date, after, ok := strings.Cut(strings.ToLower(s), "t")
	if !ok || !isDate(date) {
		return false
	}
	clock, _, _ := strings.Cut(after, "t")
	m := dayTime().FindStringSubmatch(clock)
	return m != nil && m[1] <= "23" && m[2] <= "59" && m[3] <= "59"
}

// isDuration reports whether s is one of Go's durations, or has one in words: "3 days".
func isDuration(s string) bool {
	if _, err := time.ParseDuration(s); err == nil {
		return true
	}
	found := false
	for _, m := range durationPart().FindAllStringSubmatch(s, -1) {
		if _, err := strconv.Atoi(m[2]); err != nil {
			return false
		}
		found = found || isTimeUnit(strings.ToLower(m[3]))
	}
	return found
}

func isTimeUnit(s string) bool {
	switch s {
	case "ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w", "wk":
		return true
	}
	for _, word := range []string{"nano", "micro", "milli", "sec", "min", "hour", "day", "week"} {
		if strings.HasPrefix(s, word) {
			return true
		}
	}
	return false
}

func isCreditCard(s string) bool {
	digits := strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
	if !cardNumber(digits) {
		return false
	}
	sum := 0
	for i := range len(digits) {
		n := int(digits[len(digits)-1-i] - '0')
		if i%2 == 1 {
			if n *= 2; n >= 10 {
				n -= 9
			}
		}
		sum += n
	}
	return sum%10 == 0
}

// bookNumber returns s without spaces and hyphens, if n signs are left, all digits but
// for the last one, which may be X.
func bookNumber(s string, n int) (digits string, ok bool) {
	digits = strings.Map(func(r rune) rune {
		if strings.ContainsRune("\t\n\f\r -", r) {
			return -1
		}
		return r
	}, s)
	if len(digits) != n {
		return "", false
	}
	for i, r := range digits {
		if (r < '0' || r > '9') && (i != n-1 || r != 'X') {
			return "", false
		}
	}
	return digits, true
}

func isISBN10(s string) bool {
	digits, ok := bookNumber(s, 10)
	if !ok {
		return false
	}
	sum := 0
	for i, r := range digits {
		n := int(r - '0')
		if r == 'X' {
			n = 10
		}
		sum += (i + 1) * n
	}
	return sum%11 == 0
}

func isISBN13(s string) bool {
	digits, ok := bookNumber(s, 13)
	if !ok || digits[12] == 'X' {
		return false
	}
	sum := 0
	for i, r := range digits {
		sum += int(r-'0') * (1 + i%2*2)
	}
	return sum%10 == 0
}
