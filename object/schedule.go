package object

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Schedule is when a CronJob runs: the minutes that all of its sets contain, or
// every so often. A day is chosen by DayOfMonth and DayOfWeek together, or, if
// both are restricted, by either.
type Schedule struct {
	Minute, Hour, DayOfMonth, Month, DayOfWeek uint64 // bit n: the value n
	// AnyDay, AnyWeekday: the field is "*" or "?", and restricts nothing.
	AnyDay, AnyWeekday bool
	// Every is set for "@every 1h30m"; the rest is empty then.
	Every time.Duration
}

// scheduleField is one of the five fields.
type scheduleField struct {
	name     string
	min, max int
	words    []string // of min, min+1, …
}

var scheduleFields = []scheduleField{
	{"minute", 0, 59, nil},
	{"hour", 0, 23, nil},
	{"day of month", 1, 31, nil},
	{"month", 1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of week", 0, 6, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

var scheduleWords = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// ParseSchedule reads a schedule in the notation of cron that Kubernetes takes:
// five fields, "@daily" and its like, or "@every 90m".
func ParseSchedule(s string) (Schedule, error) {
	if rest, ok := strings.CutPrefix(s, "@every "); ok {
		every, err := time.ParseDuration(rest)
		switch {
		case err != nil:
			return Schedule{}, fmt.Errorf(`%q is not a duration such as "1h30m"`, rest)
		case every < time.Second:
			return Schedule{}, errors.New("must be at least a second apart")
		}
		return Schedule{Every: every.Truncate(time.Second)}, nil
	}
	if strings.HasPrefix(s, "@") {
		full, ok := scheduleWords[strings.ToLower(s)]
		if !ok {
			return Schedule{}, fmt.Errorf("%s is unknown: use @yearly, @monthly, @weekly, @daily, @hourly or @every", s)
		}
		s = full
	}
	parts := strings.Fields(s)
	if len(parts) != len(scheduleFields) {
		return Schedule{}, fmt.Errorf("has %d fields and must have 5: minute, hour, day of month, month, day of week", len(parts))
	}
	var sets [5]uint64
	var free [5]bool
	for i, f := range scheduleFields {
		var err error
		if sets[i], free[i], err = f.parse(parts[i]); err != nil {
			return Schedule{}, fmt.Errorf("%s %q: %w", f.name, parts[i], err)
		}
	}
	schedule := Schedule{Minute: sets[0], Hour: sets[1], DayOfMonth: sets[2], Month: sets[3], DayOfWeek: sets[4], AnyDay: free[2], AnyWeekday: free[4]}
	if schedule.never() {
		return Schedule{}, errors.New("never comes: none of these months has such a day")
	}
	return schedule, nil
}

// parse reads a comma-separated list of values, ranges and steps. free: one of
// them is everything.
func (f scheduleField) parse(list string) (set uint64, free bool, err error) {
	for item := range strings.SplitSeq(list, ",") {
		span, stepText, stepped := strings.Cut(item, "/")
		step := 1
		if stepped {
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
				return 0, false, fmt.Errorf("a step must be a number from 1, is %q", stepText)
			}
			step = min(step, f.max+1)
		}
		from, to := f.min, f.max
		if span == "*" || span == "?" {
			free = free || step == 1
		} else {
			first, last, isRange := strings.Cut(span, "-")
			if from, err = f.value(first); err != nil {
				return 0, false, err
			}
			switch {
			case isRange:
				if to, err = f.value(last); err != nil {
					return 0, false, err
				}
			case !stepped: // "5"; "5/10" goes on to the end
				to = from
			}
		}
		if from > to {
			return 0, false, fmt.Errorf("the range %s ends before it begins", span)
		}
		for v := from; v <= to; v += step {
			set |= 1 << v
		}
	}
	return set, free, nil
}

func (f scheduleField) value(s string) (int, error) {
	for i, word := range f.words {
		if strings.EqualFold(s, word) {
			return f.min + i, nil
		}
	}
	n, err := strconv.Atoi(s)
	if err != nil || s[0] == '+' || s[0] == '-' {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	if n < f.min || n > f.max {
		return 0, fmt.Errorf("%d is not from %d to %d", n, f.min, f.max)
	}
	return n, nil
}

// never reports whether the days that are asked for are in none of the months.
func (s Schedule) never() bool {
	if !s.AnyWeekday {
		return false // weekdays come in every month
	}
	longest := [...]int{1: 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	first := bits.TrailingZeros64(s.DayOfMonth)
	for month := 1; month <= 12; month++ {
		if s.Month&(1<<month) != 0 && first <= longest[month] {
			return false
		}
	}
	return true
}

// scheduleHorizon bounds the search for the next time: a 29th of February that is
// to be a Monday may be 28 years off, and more around a century.
const scheduleHorizon = 41 * 366 * 24 * time.Hour

// Next returns the first time of the schedule after t, in t's location; zero if
// there is none. Times that a change to summer time skips are left out; those that
// the way back repeats come twice. Both are as in Kubernetes.
func (s Schedule) Next(t time.Time) time.Time {
	if s.Every > 0 {
		return t.Add(s.Every - time.Duration(t.Nanosecond()))
	}
	end := t.Add(scheduleHorizon)
	t = t.Add(time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
	for t.Before(end) {
		switch {
		case s.Month&(1<<t.Month()) == 0:
			t = dayStart(t.Year(), t.Month()+1, 1, t.Location())
		case !s.onDay(t):
			t = dayStart(t.Year(), t.Month(), t.Day()+1, t.Location())
		case s.Hour&(1<<t.Hour()) == 0:
			t = t.Add(time.Hour - time.Duration(t.Minute())*time.Minute)
		case s.Minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

func (s Schedule) onDay(t time.Time) bool {
	day, weekday := s.DayOfMonth&(1<<t.Day()) != 0, s.DayOfWeek&(1<<t.Weekday()) != 0
	if s.AnyDay || s.AnyWeekday {
		return day && weekday
	}
	return day || weekday
}

// dayStart returns the first moment of a day: not always midnight, which summer time
// may skip.
func dayStart(year int, month time.Month, day int, in *time.Location) time.Time {
	want := time.Date(year, month, day, 0, 0, 0, 0, time.UTC).Day()
	t := time.Date(year, month, day, 0, 0, 0, 0, in)
	for t.Day() != want {
		t = t.Add(time.Hour - time.Duration(t.Minute())*time.Minute)
	}
	return t
}
