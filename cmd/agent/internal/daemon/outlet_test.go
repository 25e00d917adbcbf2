package daemon

import (
	"testing"
	"time"
)

func TestLossIsTheTimeOfTheLast(t *testing.T) {
	var l loss
	begin := time.Now()
	steps := []struct {
		name    string
		samples uint64
		after   time.Duration
		want    time.Time
	}{
		{"none yet", 0, 0, time.Time{}},
		{"the first", 5, time.Minute, begin.Add(time.Minute)},
		{"no more", 5, time.Hour, begin.Add(time.Minute)},
		{"some more", 7, 2 * time.Hour, begin.Add(2 * time.Hour)},
	}
	for _, s := range steps {
		if got := l.last(s.samples, begin.Add(s.after)); !got.Equal(s.want) {
			t.Errorf("%s: %v, want %v", s.name, got, s.want)
		}
	}
}
