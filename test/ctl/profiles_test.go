package ctl

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func profilesDir() string { return filepath.Join(script.Dir(), "profiles") }

// profiles writes what $PROFILES has: a shop before and after a change that made
// prices dearer.
func profiles(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, counts := range map[string][]count{
		"old.pb.gz": {{"price", 500}, {"sell", 300}, {"audit", 190}, {"[kernel]", 10}},
		"new.pb.gz": {{"price", 1300}, {"sell", 600}, {"charge", 80}, {"[kernel]", 20}},
	} {
		var file bytes.Buffer
		if err := (format.Pprof{}).Write(&file, shop(counts)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), file.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

type count struct {
	function string
	samples  uint64
}

// shop is a profile of 10 s in which main called each function.
func shop(counts []count) *profiler.Profile {
	exe := &profiler.Module{Path: "/usr/bin/shop", BuildID: "5h0p"}
	process := &profiler.Process{PID: 4711, Comm: "shop", Exe: exe.Path}
	main := &profiler.Location{Module: exe, Address: 1, Frames: []profiler.Frame{{Function: "main", File: "/src/shop.c", Line: 3}}}
	p := &profiler.Profile{Start: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), Duration: 10 * time.Second, Frequency: 100, Event: "cpu-clock", Host: "larch"}
	for i, c := range counts {
		l := &profiler.Location{Module: exe, Address: uint64(i) + 16, Frames: []profiler.Frame{{Function: c.function}}}
		if c.function == "[kernel]" {
			l.Module, l.Address = &profiler.Module{Path: "[kernel]"}, 0xffffffff81000000
			l.Frames = []profiler.Frame{{Function: "ksys_read", Kind: profiler.KindKernel}}
		}
		s := profiler.Sample{Process: process, Count: c.samples, Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{l, main}}}
		p.Samples = append(p.Samples, s)
		p.Quality.Add(s.Stack, c.samples)
	}
	return p
}
