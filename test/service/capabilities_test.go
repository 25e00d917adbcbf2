package service

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// known is a workload whose profile tells what the agent may see.
type known struct {
	service   string
	module    string   // of its samples, those with a frame in it are looked at
	functions []string // one of them is in every such stack
	start     func(t *testing.T, cgroup *os.File)
}

// within starts a program in a cgroup, until the test ends. It runs what it
// should, with its libraries, when this returns.
func within(t *testing.T, cgroup *os.File, attr syscall.SysProcAttr, name string, args ...string) *workload {
	t.Helper()
	attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	w := spinAs(t, &attr, name, args...)
	until(t, 10*time.Second, name+" uses CPU time", func() bool { return cpuTime(t, w.pid) > 50*time.Millisecond })
	return w
}

// nobody is a user who owns nothing.
const nobody = 65534

// private gives a folder and a copy of a file in it that only one user may read.
func private(t *testing.T, file string, owner int) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, filepath.Base(file))
	if err := errors.Join(
		os.WriteFile(path, text, 0o700), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o700),
		os.Chown(path, owner, owner), os.Chown(dir, owner, owner),
	); err != nil {
		t.Fatal(err)
	}
	return path
}

// knowns are the workloads of the table. They run before the agent does.
func knowns(t *testing.T) []known {
	t.Helper()
	chain := compile(t, "chain.c", "chain")
	hot := []string{"hot_60", "hot_30", "hot_10"}
	return []known{
		{"klp-root", "chain", hot, func(t *testing.T, cgroup *os.File) {
			within(t, cgroup, syscall.SysProcAttr{}, chain, "-seconds", "600")
		}},
		{"klp-user", "chain", hot, func(t *testing.T, cgroup *os.File) {
			path := private(t, chain, nobody)
			within(t, cgroup, syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, path, "-seconds", "600")
		}},
		{"klp-container", "chain", hot, func(t *testing.T, cgroup *os.File) {
			static := compile(t, "chain.c", "chain", "-static")
			within(t, cgroup, syscall.SysProcAttr{}, compile(t, "container.c", "container"), t.TempDir(), static, "-seconds", "600")
		}},
		{"klp-deleted", "chain", hot, func(t *testing.T, cgroup *os.File) {
			within(t, cgroup, syscall.SysProcAttr{}, private(t, chain, 0), "-unlink", "-seconds", "600")
		}},
		{"klp-library", "libpltlib.so", []string{"tiny_60", "tiny_30", "tiny_10"}, func(t *testing.T, cgroup *os.File) {
			library := filepath.Join(t.TempDir(), "libpltlib.so")
			execute(t, "gcc", "-O2", "-fPIC", "-shared", "-o", library, filepath.Join("..", "workloads", "pltlib.c"))
			program := compile(t, "plt.c", "plt", library, "-Wl,-rpath,"+filepath.Dir(library))
			within(t, cgroup, syscall.SysProcAttr{}, program, "-seconds", "600")
			if err := os.Remove(library); err != nil {
				t.Fatal(err)
			}
		}},
		{"klp-kernel", "", nil, func(t *testing.T, cgroup *os.File) {
			within(t, cgroup, syscall.SysProcAttr{}, "dd", "if=/dev/zero", "of=/dev/null", "bs=1M")
		}},
	}
}

// seen says in words how much of a program's stacks is there.
func (k *known) seen(list []profile) string {
	if k.module == "" {
		return kernelNames(list, k.service)
	}
	var all, whole, named, nameless int
	for i := range list {
		if list[i].Service != k.service {
			continue
		}
		for j := range list[i].Stacks {
			s := &list[i].Stacks[j]
			if !s.In(k.module) {
				continue
			}
			n := int(s.Count)
			all += n
			has := slices.ContainsFunc(k.functions, s.Runs)
			switch {
			case has && s.Frames[0].Name == "_start":
				whole += n
			case has:
				named += n
			case slices.ContainsFunc(s.Frames, func(f otlptest.Frame) bool { return strings.HasPrefix(f.Name, k.module+"+0x") }):
				nameless += n
			}
		}
	}
	switch {
	case all == 0:
		return "not seen"
	case whole*100 >= all*90:
		return "complete"
	case (whole+named)*100 >= all*90:
		return "cut"
	case nameless*100 >= all*90:
		return "no names"
	}
	return fmt.Sprintf("of %d samples %d complete, %d cut, %d without names", all, whole, named, nameless)
}

// kernelNames says whether the kernel's functions have names.
func kernelNames(list []profile, service string) string {
	var named, nameless int
	for i := range list {
		if list[i].Service != service {
			continue
		}
		for j := range list[i].Stacks {
			for _, f := range list[i].Stacks[j].Frames {
				switch {
				case strings.HasPrefix(f.Name, "[kernel]+0x"):
					nameless++
				case strings.HasPrefix(f.Name, "read_zero") || strings.HasPrefix(f.Name, "vfs_read"):
					named++
				}
			}
		}
	}
	switch {
	case named > 0 && nameless == 0:
		return "named"
	case nameless > 0 && named == 0:
		return "no names"
	}
	return fmt.Sprintf("%d named, %d not", named, nameless)
}

// row is one line of the table.
type row struct {
	without string
	starts  string
	cells   []string
}

const capabilitiesPage = "../../docs/reference/capabilities.md"

// TestCapabilities takes each capability away from an agent that has those it
// needs and no other, and writes down what it sees of known workloads. The page
// must say the same.
func TestCapabilities(t *testing.T) {
	require(t)
	requireTools(t, "capsh", "unshare", "chroot")
	group := cgroups(t)
	list := knowns(t)
	for _, k := range list {
		k.start(t, group(k.service))
	}
	rows := make([]row, len(needed)+1)
	t.Run("all", func(t *testing.T) {
		for i := range rows {
			rows[i].without = "none of these"
			drop := allBut(t, neededMask())
			if i > 0 {
				rows[i].without = "`" + needed[i-1].name + "`"
				drop = append(drop, needed[i-1].value)
			}
			t.Run("without "+strings.Trim(rows[i].without, "`"), func(t *testing.T) {
				t.Parallel()
				matrixRow(t, &rows[i], drop, list)
			})
		}
	})
	if t.Failed() {
		return
	}
	if kernelNamesForAll(t) { // on this machine: not what the page is about
		for i, c := range needed {
			if c.name == "SYSLOG" {
				rows[i+1].cells[len(list)-1] = "no names"
			}
		}
	}
	want := page(rows)
	if *update {
		if err := os.WriteFile(capabilitiesPage, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(capabilitiesPage)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(want)); diff != "" {
		t.Errorf("%s is not what was seen; go test ./test/service -run Capabilities -update (-got +want):\n%s", capabilitiesPage, diff)
	}
}

// kernelNamesForAll says whether the kernel tells its addresses to anybody:
// kallsyms_show_value in kernel/ksyms_common.c.
func kernelNamesForAll(t *testing.T) bool {
	t.Helper()
	setting := func(name string) int {
		text, err := os.ReadFile("/proc/sys/kernel/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if _, err := fmt.Sscan(string(text), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	return setting("kptr_restrict") == 0 && setting("perf_event_paranoid") <= 1
}

// matrixRow runs an agent without some capabilities.
func matrixRow(t *testing.T, to *row, drop []int, list []known) {
	r := otlptest.Start(t, otlptest.Options{})
	a := launch(t, command{endpoint: r.Endpoint(), under: capsh(drop), args: []string{"--include.service", "klp-*"}})
	select {
	case <-a.done:
		to.starts = refusal(t, a)
		for range list {
			to.cells = append(to.cells, "")
		}
		return
	case <-a.log.logged("sampling"):
	}
	to.starts = "starts"
	(&scene{t, r, a, "grpc"}).catchUp(time.Now().Add(2 * time.Second))
	account(t, r, a.stop())
	profiles := profiles(t, r)
	for _, k := range list {
		cell := k.seen(profiles)
		if cell != "complete" && cell != "named" {
			for _, p := range profiles {
				if p.Service == k.service && len(p.Stacks) > 0 {
					t.Logf("%s: %s", k.service, &p.Stacks[0])
					break
				}
			}
		}
		to.cells = append(to.cells, cell)
	}
	for _, line := range a.log.with(`"level":"WARN"`) {
		t.Log(line)
	}
}

// refusal gives the words of an agent that did not start.
func refusal(t *testing.T, a *agent) string {
	t.Helper()
	_, said, _ := strings.Cut("\n"+a.log.text(), "\nerror: ")
	lines := strings.Split(said, "\n")
	if a.wait(time.Second) != 1 || len(lines) != 3 || !strings.HasPrefix(lines[1], "cause: ") || !strings.HasPrefix(lines[2], "fix:   ") {
		t.Fatalf("the agent ended with exit code %d and said\n%s", a.cmd.ProcessState.ExitCode(), a.log.text())
	}
	return lines[0] + ": " + strings.TrimPrefix(lines[1], "cause: ")
}

func page(rows []row) []byte {
	var b bytes.Buffer
	b.WriteString(`# Capabilities

<!-- Generated by a test that takes each away: go test ./test/service -run Capabilities -update -->

` + "`kalypso-agent run`" + ` needs six of root's capabilities and gives up all others, in every thread and for good, once it samples. It also sets
no_new_privs. It runs with a read-only root file system, and needs neither ` + "`SYS_ADMIN` nor `SYS_RESOURCE`" + `.

This is what is seen without one of them, by an agent that has the other five and no more. The workloads run before the agent
does: a program of root; one of another user, which nobody else may read; one in a mount namespace and a root of its own, as
containers are; one whose file was deleted, and one whose library was, as an upgrade does. "Kernel" is whether kernel functions
have names.

| without | agent | root's program | another user's | container's | deleted program | deleted library | kernel |
|---|---|---|---|---|---|---|---|
`)
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s |", r.without, r.starts)
		for _, c := range r.cells {
			if c == "" {
				c = "–"
			}
			fmt.Fprintf(&b, " %s |", c)
		}
		b.WriteByte('\n')
	}
	b.WriteString(`
"No names": the sample is there, with the file and the offset of its innermost frame only. "Cut": named, but not up to the
program's start. ` + "`SYS_ADMIN`" + ` stands in for ` + "`BPF`, `PERFMON` and `CHECKPOINT_RESTORE`, and `DAC_OVERRIDE`" + ` for
` + "`DAC_READ_SEARCH`" + `: with them the table is another one. Where ` + "`kernel.kptr_restrict`" + ` is 0 and
` + "`kernel.perf_event_paranoid` is at most 1, kernel functions have names without `SYSLOG`" + `.
`)
	return b.Bytes()
}
