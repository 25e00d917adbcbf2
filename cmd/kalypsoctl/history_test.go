package main

import (
	"testing"
	"time"
)

func TestPeriod(t *testing.T) {
	now := time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, from, to string
		length, ago    time.Duration // ago is the end
		stored         bool
		err            string
	}{
		{"what agents remember is theirs", "-15m", "", 15 * time.Minute, 0, false, ""},
		{"what is older is stored", "-1h", "now", time.Hour, 0, true, ""},
		{"a part of the past", "-3h", "-2h30m", 30 * time.Minute, 150 * time.Minute, true, ""},
		{"days", "-2d", "-1d", 24 * time.Hour, 24 * time.Hour, true, ""},
		{"a time of day", "2026-11-26T12:00:00Z", "", time.Hour, 0, true, ""},
		{"nothing is known of the future", "-5m", "2027-01-01T00:00:00Z", 5 * time.Minute, 0, false, ""},
		{"an end alone", "", "-5m", 0, 0, false, "--to is given, and not --from when"},
		{"an end before the beginning", "-5m", "-10m", 0, 0, false, "--from is not before --to"},
		{"no time at all", "-5m", "-5m", 0, 0, false, "--from is not before --to"},
		{"a beginning in the future", "2027-01-01T00:00:00Z", "", 0, 0, false, "--from is not in the past"},
		{"a beginning now", "now", "", 0, 0, false, "--from is not in the past"},
		{"no time", "yesterday", "", 0, 0, false, `--from cannot be "yesterday"`},
		{"a time without a sign", "-1h", "5m", 0, 0, false, `--to cannot be "5m"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := period{from: c.from, to: c.to}
			from, to, err := p.parse(now)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil || to.Sub(from) != c.length || now.Sub(to) != c.ago {
				t.Errorf("%v: %v to %v", err, from, to)
			}
			if got := p.isStored(from, now); got != c.stored {
				t.Errorf("stored: %v", got)
			}
			p.pyroscope = "http://pyroscope:4040"
			if !p.isStored(from, now) {
				t.Error("a server that is named is not asked")
			}
		})
	}
}
