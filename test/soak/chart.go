package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

func writeCSV(w io.Writer, rows []row) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"seconds", "resident_bytes", "maps_bytes", "cpu_share", "hertz", "samples", "lost", "whole_stacks_share", "processes"}) // Error tells
	f := func(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	for _, r := range rows {
		_ = c.Write([]string{f(r.at.Seconds(), 0), f(r.resident, 0), f(r.maps, 0), f(r.cpu, 5), f(r.hertz, 0), f(r.taken, 0), f(r.lost, 0), f(r.whole, 4), f(r.processes, 0)})
	}
	c.Flush()
	return c.Error()
}

// panel is one of the chart's rows.
type panel struct {
	title  string
	low    float64
	high   float64 // at least; more if a line is over it
	lines  []line
	format string // of its scale
}

type line struct {
	colour string
	of     func(row) float64 // NaN: nothing to draw
}

// percentWhole is known where a window ended.
func percentWhole(r row) float64 {
	if r.stacks == 0 {
		return math.NaN()
	}
	return 100 * r.whole
}

var panels = []panel{
	{"resident memory, and with BPF maps (dark), MB", 0, 128, []line{
		{"#7aa6c2", func(r row) float64 { return r.resident / 1e6 }},
		{"#1f5f86", func(r row) float64 { return (r.resident + r.maps) / 1e6 }},
	}, "%.0f"},
	{"CPU time with BPF programs, % of the node", 0, 1, []line{{"#c26a1f", func(r row) float64 { return 100 * r.cpu }}}, "%.1f"},
	{"sampling rate, Hz", 0, 100, []line{{"#5b8c3a", func(r row) float64 { return r.hertz }}}, "%.0f"},
	{"whole stacks, %", 90, 100, []line{{"#7a5ba8", percentWhole}}, "%.0f"},
	{"lost samples", 0, 10, []line{{"#b03a3a", func(r row) float64 { return r.lost }}}, "%.0f"},
}

// Measures of the chart, in pixels.
const (
	chartWidth  = 860
	chartLeft   = 48
	panelHeight = 110
	panelGap    = 34
)

// writeSVG draws it on white, for pages of any colour.
func writeSVG(w io.Writer, rows []row) error {
	var b strings.Builder
	height := len(panels)*(panelHeight+panelGap) + 24
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	last := rows[len(rows)-1].at
	x := func(r row) float64 {
		return chartLeft + (chartWidth-chartLeft-12)*r.at.Seconds()/last.Seconds()
	}
	for i, p := range panels {
		top := float64(i*(panelHeight+panelGap) + panelGap)
		high := p.high
		for _, r := range rows {
			for _, l := range p.lines {
				if v := l.of(r); v > high {
					high = v
				}
			}
		}
		y := func(v float64) float64 { return top + panelHeight*(1-(max(v, p.low)-p.low)/(high-p.low)) }
		fmt.Fprintf(&b, `<text x="%d" y="%.0f" fill="#222">%s</text>`+"\n", chartLeft, top-8, p.title)
		for _, v := range []float64{p.low, (p.low + high) / 2, high} {
			fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" fill="#666" text-anchor="end">`+p.format+`</text>`+"\n",
				chartLeft, y(v), chartWidth-12, chartLeft-6, y(v)+4, v)
		}
		for _, l := range p.lines {
			fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, l.colour)
			for _, r := range rows {
				if v := l.of(r); !math.IsNaN(v) {
					fmt.Fprintf(&b, "%.1f,%.1f ", x(r), y(v))
				}
			}
			b.WriteString("\"/>\n")
		}
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#666">0 min</text><text x="%d" y="%d" fill="#666" text-anchor="end">%.0f min</text>`+"\n</svg>\n",
		chartLeft, height-6, chartWidth-12, height-6, last.Minutes())
	_, err := io.WriteString(w, b.String())
	return err
}
