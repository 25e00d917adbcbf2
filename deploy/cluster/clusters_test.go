package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/profiler"
)

var wanted = Spec{Name: "kalypso", CPUs: 8, MemoryGiB: 14, DiskGiB: 40}

func driver(t *testing.T, name string) Driver {
	t.Helper()
	d, ok := Named(name)
	if !ok {
		t.Fatalf("no driver %s", name)
	}
	return d
}

// commands are the argvs of steps, as Shell writes them.
func commands(steps []Step) []string {
	var out []string
	for _, s := range steps {
		if len(s.Argv) > 0 {
			out = append(out, Shell(s.Argv, 0))
		}
	}
	return out
}

// goodKernel is what lookScript prints in a virtual machine of Colima.
const goodKernel = `osrelease=6.8.0-64-generic
unprivileged_bpf_disabled=2
perf_event_paranoid=4
max_user_instances=8192
lockdown=[none] integrity confidentiality
btf=vmlinux
pid=pid:[4026531836]
`

func TestLifeOfACluster(t *testing.T) {
	for _, name := range []string{"colima", "k3d", "kind"} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.write("facts", goodKernel, 0o644)
			d, c := driver(t, name), m.cluster
			var told []string
			c.OnCheck = func(r check.Result) { told = append(told, r.ID) }

			if found, err := c.Check(t.Context(), d, wanted); err != nil || found != nil {
				t.Fatalf("Check before: %v, %v", found, err)
			}
			planned := commands(c.Planned(d, wanted))
			if err := c.Create(t.Context(), d, wanted, false); err != nil {
				t.Fatal(err)
			}
			calls := m.called()
			// Inside the node, sudo and nothing else is a program of its own here.
			if diff := cmp.Diff(without(calls, "sudo "), planned); diff != "" {
				t.Errorf("what was run is not what was planned (-got +want):\n%s", diff)
			}
			if diff := cmp.Diff(told, []string{"kernel", "btf", "lockdown", "pid_namespace", "inotify"}); diff != "" {
				t.Errorf("checks (-got +want):\n%s", diff)
			}
			if s := one(t, c); !s.Whole || !s.Found || !s.Running || s.Driver != name || s.Context != d.Context("kalypso") {
				t.Errorf("after create: %+v", s)
			}
			if found, err := c.Check(t.Context(), d, wanted); err != nil || found == nil || !found.Running {
				t.Errorf("Check after: %+v, %v", found, err)
			}

			if err := c.Stop(t.Context(), d, "kalypso"); err != nil {
				t.Fatal(err)
			}
			if s := one(t, c); !s.Found || s.Running {
				t.Errorf("after stop: %+v", s)
			}
			if err := c.Start(t.Context(), d, "kalypso"); err != nil {
				t.Fatal(err)
			}
			s, d, err := c.Find(t.Context(), "kalypso")
			if err != nil || !s.Running {
				t.Fatalf("after start: %+v, %v", s, err)
			}
			if err := c.Delete(t.Context(), d, s); err != nil {
				t.Fatal(err)
			}
			if all, err := c.List(t.Context()); err != nil || len(all) > 0 {
				t.Errorf("after delete: %v, %v", all, err)
			}
		})
	}
}

func without(lines []string, prefix string) []string {
	var out []string
	for _, l := range lines {
		if !strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

func one(t *testing.T, c *Clusters) Status {
	t.Helper()
	all, err := c.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("got %d clusters, %v", len(all), err)
	}
	if all[0].Err != nil {
		t.Fatal(all[0].Err)
	}
	return all[0]
}

func TestWhatFailsIsTakenBack(t *testing.T) {
	oldKernel := strings.Replace(goodKernel, "6.8.0-64", "5.10.0-33", 1)
	tests := []struct {
		name, driver, file, text string
		want                     error
	}{
		{"the first command", "colima", "fail.colima.start", "FATA[0000] error starting vm", nil},
		{"a later command", "colima", "fail.colima.ssh", "exit status 255", nil},
		{"a kernel that is too old", "colima", "facts", oldKernel, ErrKernel},
		{"a kernel without BTF", "k3d", "facts", strings.Replace(goodKernel, "btf=vmlinux\n", "", 1), ErrKernel},
		{"a program that is no program", "kind", "bin/kind", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.write("facts", goodKernel, 0o644)
			m.write(tt.file, tt.text, 0o644)
			err := m.cluster.Create(t.Context(), driver(t, tt.driver), wanted, false)
			var failed *CreateError
			if !errors.As(err, &failed) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("got %v", err)
			}
			if tt.driver == "kind" { // which cannot delete either
				if m.has("container") {
					t.Error("kind ran")
				}
				return
			}
			if failed.Left != nil || m.has("vm") || m.has("k3d") || len(m.cluster.Records()) > 0 {
				t.Errorf("left %v, record %v", failed.Left, m.cluster.Records())
			}
			last := m.called()[len(m.called())-1]
			if want := commands(m.cluster.Deletion(driver(t, tt.driver), wanted)); last != want[len(want)-1] {
				t.Errorf("the last command is %q, want %q", last, want)
			}
		})
	}
}

func TestAnInterruptedCreateIsTakenBack(t *testing.T) {
	m := newMachine(t)
	m.write("hang.colima.start", "", 0o644)
	m.write("vm", "Running", 0o644) // as far as it came
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		for !m.has("hangs") {
			time.Sleep(5 * time.Millisecond)
		}
		interrupt()
	}()
	err := m.cluster.Create(ctx, driver(t, "colima"), wanted, false)
	if !errors.Is(err, context.Canceled) || m.has("vm") || len(m.cluster.Records()) > 0 {
		t.Errorf("got %v; vm %v, records %v", err, m.has("vm"), m.cluster.Records())
	}
}

func TestWhatCannotBeTakenBackStaysKnown(t *testing.T) {
	m := newMachine(t)
	m.write("facts", strings.Replace(goodKernel, "6.8.0", "4.19.0", 1), 0o644)
	m.write("fail.colima.delete", "FATA[0001] error deleting: no space left", 0o644)
	err := m.cluster.Create(t.Context(), driver(t, "colima"), wanted, false)
	var failed *CreateError
	if !errors.As(err, &failed) || failed.Left == nil {
		t.Fatalf("got %v", err)
	}
	// Half made: not to be made again, but to be deleted.
	var fault *profiler.Fault
	if _, err := m.cluster.Check(t.Context(), driver(t, "colima"), wanted); !errors.As(err, &fault) || fault.Fix != "kalypsoctl cluster delete --name kalypso" {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(filepath.Join(m.dir, "fail.colima.delete")); err != nil {
		t.Fatal(err)
	}
	s, d, err := m.cluster.Find(t.Context(), "kalypso")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cluster.Delete(t.Context(), d, s); err != nil || m.has("vm") || len(m.cluster.Records()) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestKeepLeavesWhatWasMade(t *testing.T) {
	m := newMachine(t)
	m.write("facts", strings.Replace(goodKernel, "6.8.0", "4.19.0", 1), 0o644)
	err := m.cluster.Create(t.Context(), driver(t, "colima"), wanted, true)
	var failed *CreateError
	if !errors.As(err, &failed) || !failed.Kept || !m.has("vm") || one(t, m.cluster).Whole {
		t.Errorf("got %v", err)
	}
}

func TestWhatOthersMadeIsNotTouched(t *testing.T) {
	tests := []struct{ driver, file, text string }{
		{"colima", "vm", "Running"},
		{"k3d", "k3d", "1"},
		{"kind", "container", "exited"},
		{"k3s", "service", "active"},
	}
	for _, tt := range tests {
		t.Run(tt.driver, func(t *testing.T) {
			m := newMachine(t)
			m.write(tt.file, tt.text, 0o644)
			var fault *profiler.Fault
			_, err := m.cluster.Check(t.Context(), driver(t, tt.driver), wanted)
			if !errors.As(err, &fault) || !strings.Contains(fault.What, "kalypsoctl did not make") {
				t.Errorf("Check: %v", err)
			}
			if _, _, err := m.cluster.Find(t.Context(), "kalypso"); !errors.Is(err, ErrUnknown) {
				t.Errorf("Find: %v", err)
			}
			if calls := m.called(); len(calls) > 0 {
				t.Errorf("ran %q", calls)
			}
		})
	}
}

// TestK3s runs it with its files in another place: it belongs to the whole
// machine otherwise.
func TestK3s(t *testing.T) {
	m := newMachine(t)
	m.write("kubeconfig", m.kubeconfig("mine"), 0o600)
	d := driver(t, "k3s")
	steps := d.Create(m.cluster.Host, wanted)
	want := []string{
		"curl -fsSL --create-dirs -o " + filepath.Join(m.dir, "cache/k3s-install.sh") + " https://get.k3s.io",
		"sh " + filepath.Join(m.dir, "cache/k3s-install.sh") + " server --disable=traefik",
		Shell([]string{"sh", "-c", inotifyScript}, 0),
		"cat /etc/rancher/k3s/k3s.yaml",
	}
	if diff := cmp.Diff(commands(steps), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	user := m.cluster.Host
	user.Root = false
	if got := commands(d.Create(user, wanted))[3]; got != "sudo cat /etc/rancher/k3s/k3s.yaml" {
		t.Errorf("whoever is not root runs %q", got)
	}
	if first := m.cluster.Planned(d, wanted)[0]; Shell(first.Argv, 0) != Shell([]string{"sh", "-c", lookScript}, 0) {
		t.Errorf("the kernel is looked at after %q", first.Argv)
	}

	if err := steps[3].Read([]byte(m.kubeconfig("default"))); err != nil {
		t.Fatal(err)
	}
	c, err := clientcmd.LoadFromFile(filepath.Join(m.dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if c.CurrentContext != "k3s-kalypso" || c.Contexts["mine"] == nil || c.Clusters["k3s-kalypso"].Server != m.server || c.Contexts["k3s-kalypso"].AuthInfo != "k3s-kalypso" {
		t.Errorf("merged: current %q, contexts %v", c.CurrentContext, c.Contexts)
	}
	if err := m.cluster.Planned(d, wanted)[5].Do(t.Context()); err != nil {
		t.Errorf("the merged context does not reach the server: %v", err)
	}
	if err := m.cluster.Deletion(d, wanted)[0].Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err = clientcmd.LoadFromFile(filepath.Join(m.dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	if len(c.Contexts) != 1 || len(c.Clusters) != 1 || len(c.AuthInfos) != 1 || c.Contexts["mine"] == nil || c.CurrentContext != "" {
		t.Errorf("taken out: current %q, contexts %v", c.CurrentContext, c.Contexts)
	}
	undone := commands(m.cluster.Deletion(d, wanted))
	if diff := cmp.Diff(undone, []string{"rm -f /etc/sysctl.d/99-kalypso.conf", "/usr/local/bin/k3s-uninstall.sh"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestAKubernetesThatIsThereIsNotRemoved(t *testing.T) {
	m := newMachine(t)
	d := driver(t, "k3s")
	m.write("kubelet/config.yaml", "", 0o644)
	d.Owned = []string{filepath.Join(m.dir, "nothing"), filepath.Join(m.dir, "kubelet")}
	var fault *profiler.Fault
	if _, err := m.cluster.Check(t.Context(), d, wanted); !errors.As(err, &fault) || !strings.HasSuffix(fault.What, "/kubelet already") {
		t.Errorf("got %v", err)
	}
}

func TestADriverThatDoesNotAnswer(t *testing.T) {
	m := newMachine(t)
	m.write("fail.k3d.cluster", "FATA[0000] Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", 0o644)
	var fault *profiler.Fault
	_, err := m.cluster.Check(t.Context(), driver(t, "k3d"), wanted)
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), "Is the docker daemon running?") || !strings.HasPrefix(fault.Fix, "docker info") {
		t.Errorf("got %v", err)
	}
}

func TestMissingPrograms(t *testing.T) {
	only := func(there ...string) func(string) (string, error) {
		return func(name string) (string, error) {
			for _, n := range there {
				if n == name {
					return "/bin/" + name, nil
				}
			}
			return "", errors.New("not found")
		}
	}
	tests := []struct {
		name, driver, system, arch string
		there                      []string
		what, fix                  string
	}{
		{"all that macOS lacks is one command", "colima", "darwin", "arm64", nil, "the driver colima needs colima, limactl, kubectl", "brew install colima lima kubectl"},
		{"what is there is not named", "colima", "darwin", "arm64", []string{"colima", "limactl"}, "the driver colima needs kubectl", "brew install kubectl"},
		{"Linux", "colima", "linux", "amd64", nil, "the driver colima needs colima, limactl, kubectl", "brew install colima kubectl     other ways: https://github.com/abiosoft/colima/blob/main/docs/INSTALL.md"},
		{"the architecture is that of the machine", "kind", "linux", "arm64", []string{"docker"}, "the driver kind needs kind", "curl -fsSLo kind https://kind.sigs.k8s.io/dl/v0.32.0/kind-linux-arm64 && sudo install kind /usr/local/bin/kind"},
		{"a driver of another system names the right one", "k3s", "darwin", "arm64", nil, "there is no k3s on macOS", "kalypsoctl cluster create --driver colima"},
		{"nothing lacks", "k3d", "linux", "amd64", []string{"k3d", "docker"}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := driver(t, tt.driver).Check(Host{OS: tt.system, Arch: tt.arch}, only(tt.there...))
			if tt.what == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			var fault *profiler.Fault
			if !errors.As(err, &fault) || fault.What != tt.what || fault.Fix != tt.fix {
				t.Errorf("got %+v", fault)
			}
		})
	}
}

func TestColimaOnEachSystem(t *testing.T) {
	tests := []struct {
		name string
		host Host
		want bool
	}{
		{"Apple silicon has its own framework", Host{OS: "darwin", Arch: "arm64"}, true},
		{"an Intel Mac may be too old for the flag", Host{OS: "darwin", Arch: "amd64"}, false},
		{"Linux has no such flag", Host{OS: "linux", Arch: "arm64"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := Shell(driver(t, "colima").Create(tt.host, wanted)[0].Argv, 0)
			if got := strings.Contains(start, " --vm-type vz "); got != tt.want {
				t.Errorf("%s", start)
			}
			if !strings.HasPrefix(start, "colima start kalypso --cpus 8 --memory 14 --disk 40 ") || !strings.Contains(start, "--kubernetes --k3s-arg --disable=traefik") {
				t.Errorf("%s", start)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	tests := []struct {
		name    string
		host    Host
		want    Spec
		profile string
	}{
		{"a large machine gives what the profile default takes", Host{CPUs: 10, MemoryBytes: 32 << 30}, Spec{CPUs: 8, MemoryGiB: 14, DiskGiB: 40}, "default"},
		{"16 GiB are not enough for that", Host{CPUs: 10, MemoryBytes: 16 << 30}, Spec{CPUs: 8, MemoryGiB: 8, DiskGiB: 40}, "small"},
		{"no more CPUs than there are", Host{CPUs: 4, MemoryBytes: 32 << 30}, Spec{CPUs: 4, MemoryGiB: 14, DiskGiB: 40}, "small"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got Spec
			got.CPUs, got.MemoryGiB, got.DiskGiB = tt.host.Sizes()
			if got != tt.want || got.Profile() != tt.profile {
				t.Errorf("got %+v, %s", got, got.Profile())
			}
		})
	}
}

func TestNamesOfClusters(t *testing.T) {
	for _, good := range []string{"kalypso", "a", "my-cluster-2"} {
		if err := CheckName(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "A", "-a", "a-", "a.b", "a;b", "default", "colima", "colima-x", strings.Repeat("a", 33)} {
		if err := CheckName(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestShellReadsBackWhatWasQuoted(t *testing.T) {
	argv := []string{"plain", "", "two words", "it's", `"$HOME"`, "a\nb", "~", "=x", "--a=b", "*", "\\", "ü", lookScript, inotifyScript}
	for _, width := range []int{0, 20, 80} {
		script := Shell(append([]string{"printf", `%s\0`}, argv...), width)
		got := strings.Split(strings.TrimSuffix(shell(t, script), "\x00"), "\x00")
		if diff := cmp.Diff(got, argv); diff != "" {
			t.Errorf("width %d (-got +want):\n%s", width, diff)
		}
		for line := range strings.Lines(Shell(argv[:4], width)) {
			if width > 0 && len(strings.TrimRight(line, "\n")) > width {
				t.Errorf("wider than %d: %q", width, line)
			}
		}
	}
}

// TestLookScript runs it for real: this machine has a kernel too.
func TestLookScript(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it reads /proc of Linux")
	}
	facts := parseFacts([]byte(shell(t, lookScript)))
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	instances, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if err != nil {
		t.Fatal(err)
	}
	if facts["osrelease"] != strings.TrimSpace(string(release)) || facts["max_user_instances"] != strings.TrimSpace(string(instances)) || !strings.HasPrefix(facts["pid"], "pid:[") {
		t.Errorf("got %v", facts)
	}
}

func TestInotifyScriptRaisesAndKeeps(t *testing.T) {
	dir := t.TempDir()
	script := strings.NewReplacer("/proc/sys/fs/inotify", dir, inotifyFile, dir+"/conf", "sysctl -q -p", "cat").Replace(inotifyScript)
	for now, want := range map[string]string{"128": "8192", "8192": "8192", "100000": "100000"} {
		for _, name := range []string{"max_user_instances", "max_user_watches"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(now+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want := fmt.Sprintf("fs.inotify.max_user_instances=%s\nfs.inotify.max_user_watches=524288\n", want)
		if got := shell(t, script); got != want {
			t.Errorf("at %s: %q, want %q", now, got, want)
		}
	}
}

func TestKernels(t *testing.T) {
	change := func(old, with string) string { return strings.Replace(goodKernel, old, with, 1) }
	tests := []struct {
		name, facts string
		failed      []string
	}{
		{"Colima's passes", goodKernel, nil},
		{"5.15 is the oldest", change("6.8.0-64", "5.15.0-100"), nil},
		{"5.14 is too old", change("6.8.0-64", "5.14.21-150"), []string{"kernel"}},
		{"no BTF", change("btf=vmlinux\n", ""), []string{"btf"}},
		{"no bpf", change("unprivileged_bpf_disabled=2\n", ""), []string{"kernel"}},
		{"no perf events", change("perf_event_paranoid=4\n", ""), []string{"kernel"}},
		{"lockdown that hides the kernel's memory", change("[none] integrity confidentiality", "none integrity [confidentiality]"), []string{"lockdown"}},
		{"lockdown that does not", change("[none] integrity", "none [integrity]"), nil},
		{"a container has process IDs of its own", change("4026531836", "4026532455"), []string{"pid_namespace"}},
		{"the kernel's default of inotify", change("=8192", "=128"), []string{"inotify"}},
		{"what does not answer", "", []string{"kernel", "btf"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var failed []string
			check.Run(t.Context(), parseFacts([]byte(tt.facts)).checks(), time.Second, func(r check.Result) {
				if r.State == check.Failed {
					failed = append(failed, r.ID)
				}
			})
			if diff := cmp.Diff(failed, tt.failed); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}
