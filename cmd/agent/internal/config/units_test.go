package config

import (
	"github.com/kalypso-dev/kalypso/cmd/internal/near"

	"testing"
	"time"
)

func TestParseBytes(t *testing.T) {
	tests := []struct {
		text   string
		want   Bytes
		better string // of what is no size
	}{
		{"128Mi", 128 << 20, ""}, {"128MiB", 128 << 20, ""}, {"128M", 128e6, ""}, {"500MB", 500e6, ""}, {"1GiB", 1 << 30, ""},
		{"1.5Gi", 3 << 29, ""}, {"0.5Ki", 512, ""}, {"1k", 1000, ""}, {"1K", 1000, ""}, {"1KB", 1000, ""}, {"7B", 7, ""}, {"1.9B", 1, ""},
		{"9007199254740993B", 1<<53 + 1, ""}, {"-1Mi", -1 << 20, ""}, {"0B", 0, ""},
		{"128", 0, "128Mi"}, {"0", 0, "0Mi"}, {"134217728", 0, "128Mi"}, {"1048577", 0, "1048577B"}, {"99999999999999999999", 0, ""}, {"128mi", 0, "128Mi"}, {"128m", 0, "128Mi"}, {"1gb", 0, "1GB"}, {"1mib", 0, "1MiB"},
		{"", 0, ""}, {"Mi", 0, ""}, {".5Mi", 0, ""}, {"5.Mi", 0, ""}, {"+5Mi", 0, ""}, {"1e3Mi", 0, ""}, {"128 Mi", 0, ""}, {"128Mi ", 0, ""},
		{"lots", 0, ""}, {"1.2.3Mi", 0, ""}, {"1-2Mi", 0, ""}, {"NaNMi", 0, ""}, {"InfMi", 0, ""}, {"9Ei", 0, ""},
		{"8388608Ti", 0, ""}, {"9223372036854775808B", 0, ""}, {"１Mi", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, wrong := parseBytes(tt.text)
			switch {
			case tt.want == 0 && tt.text != "0B" && (wrong == nil || wrong.better != tt.better):
				t.Errorf("got %d, %+v, want %q instead", got, wrong, tt.better)
			case (tt.want != 0 || tt.text == "0B") && (wrong != nil || got != tt.want):
				t.Errorf("got %d, %+v, want %d", got, wrong, tt.want)
			}
		})
	}
}

func TestBytesString(t *testing.T) {
	for want, b := range map[string]Bytes{
		"128Mi": 128 << 20, "1Gi": 1 << 30, "1500Mi": 1500 << 20, "500MB": 500e6, "1kB": 1000, "1001B": 1001, "0B": 0, "1Ti": 1 << 40, "-1Mi": -1 << 20,
	} {
		if got := b.String(); got != want {
			t.Errorf("%d is written %s, want %s", int64(b), got, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"15s": 15 * time.Second, "15m": 15 * time.Minute, "1h": time.Hour, "1h30m": 90 * time.Minute, "1h0m5s": time.Hour + 5*time.Second,
		"500ms": 500 * time.Millisecond, "0s": 0, "10m": 10 * time.Minute, "10h": 10 * time.Hour, "1m30s": 90 * time.Second,
	} {
		if got := durationText(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	table := settings()
	for word, want := range map[string]string{
		"otlp.endpont": "otlp.endpoint", "otlp": "otlp.endpoint", "frequncy": "frequency", "label": "labels", "memory-budget": "memory.budget",
		"spool.maxage": "spool.max-age", "": "", "x": "", "completely-different": "",
	} {
		if got := near.Word(word, names(table, same)); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}
