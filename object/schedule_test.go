package object

import (
	"testing"
	"time"
)

// TestScheduleNext: what follows a moment, around the ends of months and years, leap
// days, and both changes of summer time.
func TestScheduleNext(t *testing.T) {
	for _, tt := range []struct{ schedule, zone, after, want string }{
		{"* * * * *", "UTC", "2026-01-01 12:00:00", "2026-01-01 12:01 +0000"},
		{"* * * * *", "UTC", "2026-01-01 12:00:59", "2026-01-01 12:01 +0000"},
		{"*/15 * * * *", "UTC", "2026-01-01 12:46:00", "2026-01-01 13:00 +0000"},
		{"30 3 * * *", "UTC", "2026-12-31 03:30:00", "2027-01-01 03:30 +0000"},
		{"0 0 31 * *", "UTC", "2026-01-31 00:00:00", "2026-03-31 00:00 +0000"},
		{"0 0 29 2 *", "UTC", "2026-01-01 00:00:00", "2028-02-29 00:00 +0000"},
		{"0 9 * * mon-fri", "UTC", "2026-01-02 09:00:00", "2026-01-05 09:00 +0000"},
		{"0 9 13 * fri", "UTC", "2026-01-02 09:00:00", "2026-01-09 09:00 +0000"}, // either
		{"0 9 13 * fri", "UTC", "2026-01-09 09:00:00", "2026-01-13 09:00 +0000"},
		{"@every 90s", "UTC", "2026-01-01 12:00:00", "2026-01-01 12:01 +0000"},
		{"0 3 * * *", "Europe/Berlin", "2026-01-01 12:00:00", "2026-01-02 03:00 +0100"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 12:00:00", "2026-03-30 02:30 +0200"}, // there is no 2:30 on the 29th
		{"0 * * * *", "Europe/Berlin", "2026-03-29 01:00:00", "2026-03-29 03:00 +0200"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-24 12:00:00", "2026-10-25 02:30 +0200"}, // the first of two
		{"0 0 * * *", "Africa/Cairo", "2026-04-23 12:00:00", "2026-04-25 00:00 +0300"},   // there is no midnight on the 24th
		{"0 1 * * *", "Africa/Cairo", "2026-04-23 12:00:00", "2026-04-24 01:00 +0300"},
	} {
		s, err := ParseSchedule(tt.schedule)
		if err != nil {
			t.Fatal(err)
		}
		zone, err := time.LoadLocation(tt.zone)
		if err != nil {
			t.Fatal(err)
		}
		after, err := time.ParseInLocation(time.DateTime, tt.after, zone)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Next(after).Format("2006-01-02 15:04 -0700"); got != tt.want {
			t.Errorf("%s in %s after %s: %s, want %s", tt.schedule, tt.zone, tt.after, got, tt.want)
		}
	}
}
