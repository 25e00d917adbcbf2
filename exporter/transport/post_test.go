package transport

import (
	"net/http"
	"testing"
	"time"
)

func TestHeaderDelay(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		" 7 ":                           7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"86400":                         10 * time.Minute,
		"99999999999999999999":          0,
		"Wed, 21 Oct 2015 07:28:00 GMT": 0,
	} {
		if got := headerDelay(value); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
	date := time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)
	if got := headerDelay(date); got < 80*time.Second || got > 90*time.Second {
		t.Errorf("%q: %s, want 90s", date, got)
	}
}
