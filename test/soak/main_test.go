package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// flat is an hour in which nothing happens, memory but for what grow says.
func flat(grow func(i int) float64) []row {
	var rows []row
	for i := range 360 {
		r := row{at: time.Duration(i+1) * 10 * time.Second, resident: 60e6 * grow(i), maps: 14e6, cpu: 0.004, hertz: 97, taken: 1900}
		if i%2 == 0 { // a window ended
			r.stacks, r.whole = 3800, 0.995
		}
		rows = append(rows, r)
	}
	return rows
}

func TestReport(t *testing.T) {
	still := func(int) float64 { return 1 }
	for _, tt := range []struct {
		name   string
		rows   []row
		totals totals
		bad    bool
		says   string
	}{
		{"nothing grows, all is counted", flat(still), totals{10, 7, 1, 2}, false, "1.000 of the second"},
		{"the first quarter may", flat(func(i int) float64 { return min(1, 0.5+float64(i)/180) }), totals{10, 10, 0, 0}, false, "0 in no count"},
		{"a leak", flat(func(i int) float64 { return 1 + float64(i)/1000 }), totals{10, 10, 0, 0}, true, "of the second"},
		{"a sample that nobody counted", flat(still), totals{10, 9, 0, 0}, true, "1 in no count"},
		{"one that was counted twice", flat(still), totals{10, 11, 0, 0}, true, "-1 in no count"},
		{"too short", flat(still)[:3], totals{}, true, "too short"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if bad := report(&b, tt.rows, tt.totals); bad != tt.bad || !strings.Contains(b.String(), tt.says) {
				t.Errorf("bad is %t, want %t; want %q in\n%s", bad, tt.bad, tt.says, b.String())
			}
		})
	}
}

func TestChartIsWellFormed(t *testing.T) {
	var b bytes.Buffer
	if err := writeSVG(&b, flat(func(int) float64 { return 1 })); err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(b.String(), "<polyline")
	d := xml.NewDecoder(&b)
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if lines != 6 || strings.Contains(b.String(), "NaN") {
		t.Errorf("%d lines, want 6 without a NaN", lines)
	}
}

func TestTotalsOf(t *testing.T) {
	got, err := totalsOf([]byte(`{"msg":"sampling"}` + "\nno JSON\n" + `{"msg":"ended","taken":9,"samples":7,"lost":1,"filtered":1}` + "\n"))
	if err != nil || got != (totals{9, 7, 1, 1}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := totalsOf([]byte("{}\n")); err == nil {
		t.Error("an agent that did not end was taken to have ended")
	}
}
