package kernels

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// "go test ./test/kernels -update" with KALYPSO_KERNELS writes what the machines
// did into results.json, if all passed, and that into the pages.
var update = flag.Bool("update", false, "write results.json, and the tables of README.md and docs/reference/kernels.md")

// "-only PATTERN" leaves out what else the machines do, and "-run TestKernels/NAME"
// the other machines.
var only = flag.String("only", "", "pattern of the runs that machines do, such as ^test; nothing is written then")

const resultsFile = "results.json"

// outcome is what a machine did.
type outcome struct {
	Kernel     string      `json:"kernel"`
	Arch       string      `json:"arch"`
	Doctor     []string    `json:"doctor"` // checks that passed
	Recordings []recording `json:"recordings"`
	Tests      []tested    `json:"tests"`
}

// recording is one of a machine. Points and percentages are to a tenth.
type recording struct {
	Name    string  `json:"name"`
	Title   string  `json:"title"`
	Event   string  `json:"event"`
	Samples int     `json:"samples"`
	Points  float64 `json:"points"` // the worst share's difference from the truth
	Chain   float64 `json:"chain"`  // of the samples in the hot functions, %
	Whole   float64 `json:"whole"`  // of all stacks, %
}

// results gathers those of machines that run at the same time.
type results struct {
	mu   sync.Mutex
	list []outcome
}

func (r *results) add(o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, o)
}

func (r *results) write(t *testing.T) {
	slices.SortFunc(r.list, func(a, b outcome) int {
		return cmp.Or(-byNumber(a.Kernel, b.Kernel), strings.Compare(a.Kernel, b.Kernel))
	})
	raw, err := json.MarshalIndent(r.list, "", "  ")
	if err == nil {
		err = os.WriteFile(resultsFile, append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
	for _, p := range pages {
		if err := p.rewrite(r.list); err != nil {
			t.Error(err)
		}
	}
}

// byNumber compares the series of kernels, 1 where the first is newer.
func byNumber(a, b string) int {
	var x, y [2]int
	_, _ = fmt.Sscanf(a, "%d.%d", &x[0], &x[1])
	_, _ = fmt.Sscanf(b, "%d.%d", &y[0], &y[1])
	return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
}

// page is a page with a table of results between two markers of a name.
type page struct {
	path, name string
	table      func([]outcome) string
}

const reference = "../../docs/reference/kernels.md"

var pages = []page{
	{"../../README.md", "kernels", summary},
	{reference, "kernels", details}, {reference, "kernel tests", testsOf}, {reference, "fallbacks", fallbacksOf},
}

func (p page) markers() *regexp.Regexp {
	return regexp.MustCompile(`(?s)(<!-- ` + p.name + `: [^>]*-->\n).*?(<!-- /` + p.name + ` -->)`)
}

// with is the text of the page with these results.
func (p page) with(text string, list []outcome) string {
	return p.markers().ReplaceAllString(text, "${1}"+strings.ReplaceAll(p.table(list), "$", "$$")+"${2}")
}

func (p page) rewrite(list []outcome) error {
	text, err := os.ReadFile(p.path)
	if err != nil {
		return err
	}
	return os.WriteFile(p.path, []byte(p.with(string(text), list)), 0o644)
}

// summary has a line for each kernel: what was worst.
func summary(list []outcome) string {
	var b strings.Builder
	b.WriteString("| kernel | recordings | sampled by | shares, points off | chains whole, at least |\n|---|---|---|---|---|\n")
	for _, o := range list {
		points, chain := 0.0, 100.0
		var events []string
		for _, r := range o.Recordings {
			points, chain = max(points, r.Points), min(chain, r.Chain)
			if r.Event != "-" && !strings.HasPrefix(r.Name, byClock) && !slices.Contains(events, r.Event) {
				events = append(events, r.Event)
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %.1f | %.1f %% |\n", o.Kernel, len(o.Recordings), strings.Join(events, ", "), points, chain)
	}
	return b.String()
}

// details has a line for each recording.
func details(list []outcome) string {
	var b strings.Builder
	b.WriteString("| kernel | recording | event | samples | points | chain | complete |\n|---|---|---|---|---|---|---|\n")
	for _, o := range list {
		kernel := o.Kernel
		for _, r := range o.Recordings {
			fmt.Fprintf(&b, "| %s | %s | %s | %d | %.1f | %.1f | %.1f |\n", kernel, r.Title, r.Event, r.Samples, r.Points, r.Chain, r.Whole)
			kernel = ""
		}
	}
	return b.String()
}

// testsOf has a line for each kernel and a column for each package; what no test
// was run for stands below.
func testsOf(list []outcome) string {
	var b strings.Builder
	b.WriteString("| kernel |")
	for _, s := range suites {
		fmt.Fprintf(&b, " `%s` |", s.pkg)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(suites)) + "\n")
	for _, o := range list {
		fmt.Fprintf(&b, "| %s |", o.Kernel)
		for _, s := range suites {
			said := "-"
			for _, done := range o.Tests {
				if done.Package == s.pkg {
					said = fmt.Sprint(done.Passed)
				}
			}
			fmt.Fprintf(&b, " %s |", said)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n| not run | why |\n|---|---|\n")
	for _, s := range suites {
		if s.rest != "" {
			fmt.Fprintf(&b, "| `%s`, all but `%s` | %s |\n", s.pkg, strings.ReplaceAll(strings.Trim(s.only, "^()$"), "|", "`, `"), s.rest)
		}
		for _, name := range slices.Sorted(maps.Keys(s.leftOut)) {
			fmt.Fprintf(&b, "| `%s` `%s` | %s |\n", s.pkg, name, s.leftOut[name])
		}
	}
	return b.String()
}

// oldest is the series of the oldest kernel.
func oldest(list []outcome) string {
	first := slices.MinFunc(list, func(a, b outcome) int { return byNumber(a.Kernel, b.Kernel) })
	parts := strings.SplitN(first.Kernel, ".", 3)
	return parts[0] + "." + parts[1]
}

// The pages say what the machines did, and these did all.
func TestPages(t *testing.T) {
	raw, err := os.ReadFile(resultsFile)
	if err != nil {
		t.Fatal(err)
	}
	var list []outcome
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		text, err := os.ReadFile(p.path)
		if err != nil {
			t.Fatal(err)
		}
		if !p.markers().Match(text) {
			t.Errorf("%s has no markers %q", p.path, p.name)
		}
		if got := p.with(string(text), list); got != string(text) {
			t.Errorf("%s does not have what is in %s: make test-kernels KERNELFLAGS=-update", p.path, resultsFile)
			if *update {
				if err := p.rewrite(list); err != nil {
					t.Error(err)
				}
			}
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if floor := oldest(list); !strings.Contains(string(readme), "Linux "+floor+" or newer") {
		t.Errorf("README.md does not promise Linux %s, the oldest that was run", floor)
	}
	for _, o := range list {
		for _, w := range workloads {
			if w.arch != "" && w.arch != o.Arch {
				continue
			}
			i := slices.IndexFunc(o.Recordings, func(r recording) bool { return r.Name == w.name })
			if i < 0 {
				t.Errorf("%s has not recorded %s", o.Kernel, w.name)
				continue
			}
			r := o.Recordings[i]
			if chain := 100 * cmp.Or(w.whole, chainMin); r.Points > sharePoints || r.Chain < chain {
				t.Errorf("%s, %s: shares are %.1f points off, %.1f %% of chains are whole", o.Kernel, r.Name, r.Points, r.Chain)
			}
		}
	}
}
