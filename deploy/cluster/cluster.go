// Package cluster makes, starts, stops and deletes local clusters on which the
// stack can run, with tools that are on this machine: Colima, K3s, k3d, kind.
//
// A driver is data: what it needs, and lists of commands with a reason for
// each. Whoever shows what would be done and whoever does it walk the same
// lists, so that they cannot disagree. What is made is written down in a record
// before the first command runs, and taken back by the undo of each step when a
// later one fails; nothing without a record is ever touched.
//
// The package starts programs and looks at the kernel that the nodes run on. It
// does not know the stack, and asks nobody: who calls it does.
package cluster

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Spec says what cluster is wanted.
type Spec struct {
	Name      string
	CPUs      int // as MemoryGiB and DiskGiB: 0 where the driver makes no machine
	MemoryGiB int
	DiskGiB   int
}

// Default is the name of a cluster that got none.
const Default = "kalypso"

// nameLimit is the shortest of the drivers' own limits, that of k3d.
const nameLimit = 32

var nameShape = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// CheckName says what is wrong with the name of a cluster.
func CheckName(name string) error {
	switch {
	case !nameShape.MatchString(name):
		return fmt.Errorf("a name has lower-case letters, digits and hyphens, and a letter or a digit at both ends")
	case len(name) > nameLimit:
		return fmt.Errorf("a name has at most %d characters, this one has %d", nameLimit, len(name))
	case name == "colima" || name == "default" || strings.HasPrefix(name, "colima-"):
		return fmt.Errorf("it is another profile's name to Colima")
	}
	return nil
}

// Host is the machine that this program runs on.
type Host struct {
	OS          string // runtime.GOOS
	Arch        string // runtime.GOARCH
	CPUs        int
	MemoryBytes int64 // 0: not known
	Root        bool
	CacheDir    string // for files that can be had again
}

// Step is one command, or one thing that is done here.
type Step struct {
	Reason string
	Argv   []string                    // empty where Do is set
	Read   func(output []byte) error   // gets the output, which is shown otherwise
	Do     func(context.Context) error // what needs no program
	Undo   []Step                      // takes back what the step made, wholly or in part
}

// Driver makes clusters in one way.
type Driver struct {
	Name    string
	Title   string   // what a cluster of it is, in a few words
	Systems []string // where it runs: values of runtime.GOOS
	Tools   []Tool
	Sized   bool     // heeds CPUs, MemoryGiB and DiskGiB of a Spec
	Asks    string   // what somebody has to agree to first; empty: nothing
	Lost    string   // what does not work on its clusters; empty: nothing
	Unwell  string   // what to type when it does not answer
	Owned   []string // files that deleting a cluster removes, and that must not be there before

	Node string // what a node is: a virtual machine, a container

	Context func(name string) string    // of the kubeconfig
	Create  func(h Host, s Spec) []Step // makes it, and puts it into the kubeconfig
	Start   func(h Host, name string) []Step
	Stop    func(h Host, name string) []Step
	Inside  func(name string) []string // puts a command into a node; empty: nodes are this machine
	State   Query
}

// Query asks a driver for one cluster.
type Query struct {
	Argv  func(name string) []string
	Parse func(output []byte, name string) (State, error)
}

// State is what a driver tells of a cluster.
type State struct {
	Found   bool
	Running bool
	Detail  string // the driver's own word
}

// Tool is a program that a driver needs.
type Tool struct {
	Program string
	Get     map[string]string // the command that installs it, by runtime.GOOS; ARCH is a runtime.GOARCH
}

// Drivers are all that there are, the ones to prefer first.
func Drivers() []Driver { return []Driver{colima(), k3s(), k3d(), kind()} }

// Names are those of all drivers.
func Names() []string {
	var names []string
	for _, d := range Drivers() {
		names = append(names, d.Name)
	}
	return names
}

// Named gives a driver; ok is false where there is none of the name.
func Named(name string) (d Driver, ok bool) {
	all := Drivers()
	i := slices.IndexFunc(all, func(d Driver) bool { return d.Name == name })
	if i < 0 {
		return Driver{}, false
	}
	return all[i], true
}

// DefaultDriver is the one that an operating system has the least between the
// agent and the kernel with.
func DefaultDriver(system string) string {
	if system == "linux" {
		return k3s().Name
	}
	return colima().Name
}

// Check says why a driver cannot work on a machine. look finds a program, as
// exec.LookPath does.
func (d Driver) Check(h Host, look func(string) (string, error)) error {
	if !slices.Contains(d.Systems, h.OS) {
		return &profiler.Fault{
			What: fmt.Sprintf("there is no %s on %s", d.Name, systemName(h.OS)),
			Why:  fmt.Errorf("it runs on %s", systemName(d.Systems[0])),
			Fix:  "kalypsoctl cluster create --driver " + DefaultDriver(h.OS),
		}
	}
	var missing, get []string
	for _, t := range d.Tools {
		if _, err := look(t.Program); err != nil {
			missing = append(missing, t.Program)
			if how := strings.ReplaceAll(t.Get[h.OS], "ARCH", h.Arch); !slices.Contains(get, how) {
				get = append(get, how)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &profiler.Fault{
		What: fmt.Sprintf("the driver %s needs %s", d.Name, strings.Join(missing, ", ")),
		Why:  fmt.Errorf("%s not on this machine's PATH", plural(missing)),
		Fix:  strings.ReplaceAll(strings.Join(get, " && "), " && brew install", ""),
	}
}

func plural(names []string) string {
	if len(names) == 1 {
		return "it is"
	}
	return "they are"
}

func systemName(system string) string {
	switch system {
	case "darwin":
		return "macOS"
	case "linux":
		return "Linux"
	}
	return system
}

// ThisHost tells of the machine that this program runs on.
func ThisHost(cacheDir string) Host {
	return Host{
		OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		MemoryBytes: memoryBytes(), Root: os.Geteuid() == 0, CacheDir: cacheDir,
	}
}

// Sizes are those of a virtual machine that holds the stack, or less where the
// machine has no more to give.
func (h Host) Sizes() (cpus, memoryGiB, diskGiB int) {
	// What docs/reference/charts.md says of the profiles default and small.
	cpus, memoryGiB, diskGiB = 8, 14, 40
	if h.CPUs < cpus {
		cpus = h.CPUs
	}
	// 4 GiB are left to the machine itself.
	if h.MemoryBytes > 0 && h.MemoryBytes < int64(memoryGiB+4)<<30 {
		memoryGiB = 8
	}
	return cpus, memoryGiB, diskGiB
}

// Profile is that of the stack which fits a cluster.
func (s Spec) Profile() string {
	if s.CPUs > 0 && s.CPUs < 8 || s.MemoryGiB > 0 && s.MemoryGiB < 14 {
		return "small"
	}
	return "default"
}

// asRoot puts a command into the hands of root.
func (h Host) asRoot(argv ...string) []string {
	if h.Root {
		return argv
	}
	return append([]string{"sudo"}, argv...)
}
