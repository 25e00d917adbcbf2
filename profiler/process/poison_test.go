package process

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// hostile is a runtime that panics at one of the things it is asked.
type hostile struct{ at string }

func (hostile) Name() string { return "hostile" }
func (h hostile) Recognise(f *elffile.File, root string) (lang.Program, error) {
	if h.at == "recognising" {
		panic("index out of range")
	}
	p, err := plain{64}.Recognise(f, root)
	return hostileProgram{p.(plainProgram), h.at}, err
}

type hostileProgram struct {
	plainProgram
	at string
}

func (p hostileProgram) Rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	if p.at == "building unwind rows" {
		panic("index out of range")
	}
	return p.plainProgram.Rows(dst, low, high)
}
func (p hostileProgram) Attach(profiler.PID) (lang.Instance, error) {
	return hostileInstance{at: p.at}, nil
}

type hostileInstance struct {
	plainInstance
	at string
}

func (i hostileInstance) Symbolize(dst []profiler.Frame, _ uint64) ([]profiler.Frame, error) {
	if i.at == "naming functions" {
		panic("index out of range")
	}
	return append(dst, profiler.Frame{Function: "named"}), nil
}

// TestPoisonedFile: whatever panics over a file, the agent goes on, says so once,
// and does not read that file again.
func TestPoisonedFile(t *testing.T) {
	for _, step := range []string{"recognising", "building unwind rows", "naming functions"} {
		t.Run(step, func(t *testing.T) {
			table, _, _ := newTestTable(t, roomy, hostile{step})
			var told []string
			table.Failed = func(err error) { told = append(told, err.Error()) }
			pid := start(t, exec.Command(build(t, "sleeper")))
			m := codeOf(t, pid, "/sleeper")
			for range 3 {
				if _, _, err := table.Walk(nil, pid, at(m.Start+100)); err != nil {
					t.Fatal(err)
				}
				e := table.byID[1]
				frames, _ := e.Symbolize(nil, m.Offset+100)
				if len(frames) != 0 {
					t.Errorf("a poisoned file gives the names %+v", frames)
				}
			}
			if len(told) != 1 || !strings.Contains(told[0], step) || !strings.Contains(told[0], m.Path) || !strings.Contains(told[0], "index out of range") {
				t.Errorf("told %q, want once what went wrong with %s", told, m.Path)
			}
			if n := table.Stats().FilesPoisoned; n != 1 {
				t.Errorf("%d files are poisoned, want 1", n)
			}
		})
	}
}
