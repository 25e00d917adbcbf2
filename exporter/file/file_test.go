package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/exporter/spool"
	"github.com/kalypso-dev/kalypso/profiler"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.FixedZone("CET", 3600))

// window is the n-th window of 15 seconds, with two workloads.
func window(n int) []*profiler.Profile {
	one := func(service string, count uint64) *profiler.Profile {
		stack := &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
			Module: &profiler.Module{Path: "/usr/bin/" + service}, Address: 0x1000,
			Frames: []profiler.Frame{{Function: service + ".main"}},
		}}}
		p := &profiler.Profile{
			Workload: &profiler.Workload{Attributes: []profiler.Attribute{
				{Key: "container.id", Value: service + "-1"}, {Key: "service.name", Value: service},
			}},
			Start: noon.Add(time.Duration(n) * 15 * time.Second), Duration: 15 * time.Second,
			Frequency: 97, Event: "cpu-clock",
			Samples: []profiler.Sample{{Process: &profiler.Process{PID: 7, Comm: service}, Stack: stack, Count: count}},
		}
		p.Quality = format.Quality(p.Samples)
		return p
	}
	return []*profiler.Profile{one("cart", 30), one("shop", 60)}
}

func encode(t *testing.T, profiles []*profiler.Profile) *exporter.Request {
	t.Helper()
	requests, dropped, err := Encoder{}.Encode(profiles)
	if err != nil || dropped != 0 || len(requests) != 1 {
		t.Fatalf("%d requests, %d dropped, %v", len(requests), dropped, err)
	}
	return requests[0]
}

func open(t *testing.T, cfg Config) *Folder {
	t.Helper()
	f, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func send(t *testing.T, f *Folder, n int) {
	t.Helper()
	if _, err := f.Send(t.Context(), encode(t, window(n))); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func windowName(n int) string { return fileName(noon.Add(time.Duration(n+1) * 15 * time.Second)) }

func TestAWindowIsOneFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "profiles")
	f := open(t, Config{Dir: dir})
	r := encode(t, window(0))
	if want := noon.Add(15 * time.Second); !r.Time.Equal(want) || r.Samples != 90 || r.Profiles != 2 {
		t.Errorf("%d samples of %d profiles at %s", r.Samples, r.Profiles, r.Time)
	}
	send(t, f, 0)
	send(t, f, 1)
	if diff := cmp.Diff([]string{"kalypso-20261122T110015.000000Z.pb.gz", "kalypso-20261122T110030.000000Z.pb.gz"}, names(t, dir)); diff != "" {
		t.Fatalf("(-want +got)\n%s", diff)
	}
	text, err := os.Open(filepath.Join(dir, names(t, dir)[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	got, err := format.ReadProfiles(text)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range window(0) {
		if i >= len(got) {
			t.Fatalf("%d profiles", len(got))
		}
		if diff := cmp.Diff(want.Workload, got[i].Workload); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if n := got[i].Quality.Samples; n != want.Quality.Samples {
			t.Errorf("%d samples, want %d", n, want.Quality.Samples)
		}
	}
	if _, err := text.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	p, err := pprof.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	shares := map[string]int64{}
	for _, s := range p.Sample {
		shares[strings.Join(s.Label["service.name"], ",")] += s.Value[0]
	}
	if diff := cmp.Diff(map[string]int64{"cart": 30, "shop": 60}, shares); diff != "" {
		t.Errorf("samples by label (-want +got)\n%s", diff)
	}
}

func TestAWindowWithoutSamplesIsNoFile(t *testing.T) {
	empty := window(0)
	for _, p := range empty {
		p.Samples = nil
	}
	for _, profiles := range [][]*profiler.Profile{nil, empty} {
		requests, dropped, err := Encoder{}.Encode(profiles)
		if len(requests) != 0 || dropped != 0 || err != nil {
			t.Errorf("%d requests, %d dropped, %v", len(requests), dropped, err)
		}
	}
}

func TestARequestSentTwiceIsOneFile(t *testing.T) {
	dir := t.TempDir()
	f := open(t, Config{Dir: dir, MaxFiles: 2})
	for _, n := range []int{0, 1, 1, 1} {
		send(t, f, n)
	}
	if diff := cmp.Diff([]string{windowName(0), windowName(1)}, names(t, dir)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWindowsOfOneMillisecondAreTwoFiles(t *testing.T) {
	dir := t.TempDir()
	f := open(t, Config{Dir: dir})
	for _, after := range []time.Duration{0, 200 * time.Microsecond} {
		profiles := window(0)
		for _, p := range profiles {
			p.Duration += after
		}
		if _, err := f.Send(t.Context(), encode(t, profiles)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(names(t, dir)); n != 2 {
		t.Errorf("%d files, want 2", n)
	}
}

func TestTheOldestFilesMakeRoom(t *testing.T) {
	size := int64(len(encode(t, window(0)).Body))
	for name, cfg := range map[string]Config{"files": {MaxFiles: 3}, "bytes": {MaxBytes: size*3 + size/2}} {
		t.Run(name, func(t *testing.T) {
			cfg.Dir = t.TempDir()
			// Of these none is the folder's, whatever it is called like.
			foreign := []string{"README", "kalypso-20261122T110015.000000Z.pb.gz.bak", "kalypso-2026.pb.gz", "shop.pb.gz"}
			for _, name := range foreign {
				if err := os.WriteFile(filepath.Join(cfg.Dir, name), []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			folder := fileName(noon.Add(-time.Hour))
			if err := os.Mkdir(filepath.Join(cfg.Dir, folder), 0o700); err != nil {
				t.Fatal(err)
			}
			link := fileName(noon.Add(-2 * time.Hour))
			if err := os.Symlink("README", filepath.Join(cfg.Dir, link)); err != nil {
				t.Fatal(err)
			}
			f := open(t, cfg)
			for n := range 5 {
				send(t, f, n)
			}
			f = open(t, cfg) // the next run knows the files of the last
			for n := range 2 {
				send(t, f, 5+n)
			}
			want := append(foreign, folder, link, windowName(4), windowName(5), windowName(6))
			slices.Sort(want)
			if diff := cmp.Diff(want, names(t, cfg.Dir)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	t.Run("a bound that is lower than it was holds from the start", func(t *testing.T) {
		dir := t.TempDir()
		f := open(t, Config{Dir: dir})
		for n := range 5 {
			send(t, f, n)
		}
		open(t, Config{Dir: dir, MaxFiles: 2})
		if diff := cmp.Diff([]string{windowName(3), windowName(4)}, names(t, dir)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("a file larger than the folder is refused", func(t *testing.T) {
		dir := t.TempDir()
		f := open(t, Config{Dir: dir, MaxBytes: 10})
		if _, err := f.Send(t.Context(), encode(t, window(0))); !exporter.Refused(err) {
			t.Errorf("got %v", err)
		}
		if got := names(t, dir); len(got) > 0 {
			t.Errorf("left: %v", got)
		}
	})
}

func TestWhatAKilledAgentDidNotFinishIsRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{windowName(0) + tempEnding, "mine" + tempEnding} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half a fi"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Config{Dir: dir})
	if diff := cmp.Diff([]string{"mine" + tempEnding}, names(t, dir)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestABadFolderIsToldAtTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, dir string
		why       error
	}{
		{"none", "", nil},
		{"a file", file, unix.ENOTDIR},
		{"below a file", filepath.Join(file, "profiles"), unix.ENOTDIR},
		{"where nothing can be made", "/proc/profiles", unix.ENOENT},
		{"where nothing can be written", "/proc/self", unix.ENOENT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(Config{Dir: tt.dir})
			var fault *profiler.Fault
			if !errors.As(err, &fault) || !strings.Contains(fault.What, fmt.Sprintf("%q", tt.dir)) || fault.Why == nil || fault.Fix == "" {
				t.Fatalf("got %v", err)
			}
			if tt.why != nil && !errors.Is(err, tt.why) {
				t.Errorf("got %v, want %v", err, tt.why)
			}
		})
	}
	if _, err := Open(Config{Dir: t.TempDir(), MaxFiles: -1}); err == nil {
		t.Error("no error for a negative limit")
	}
}

func TestAFolderThatIsRemovedIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "profiles")
	f := open(t, Config{Dir: dir})
	send(t, f, 0)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	send(t, f, 1)
	if diff := cmp.Diff([]string{windowName(1)}, names(t, dir)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnErrorOfTheDiskIsTriedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "profiles")
	f := open(t, Config{Dir: dir})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Send(t.Context(), encode(t, window(0))); err == nil || exporter.Refused(err) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Send(ended, encode(t, window(0))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestThroughASpool(t *testing.T) {
	dir := t.TempDir()
	f := open(t, Config{Dir: filepath.Join(dir, "profiles")})
	s, err := spool.Open(spool.Config{Sender: f, Dir: filepath.Join(dir, "spool")})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := s.Put(&exporter.Request{Time: time.Now(), Samples: 90, Body: encode(t, window(n)).Body}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Delivered.Samples != 270 {
		t.Errorf("%+v", st)
	}
}
