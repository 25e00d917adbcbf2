package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/profiler"
)

// look looks at the components, and asks the agents meanwhile. That those cannot
// be asked is no error: it is said on the page.
func look(ctx context.Context, cluster *kube.Cluster, reach agents.Reacher) ([]status.Component, fleet) {
	var all []status.Component
	var f fleet
	var both errgroup.Group
	both.Go(func() error {
		all = status.Look(ctx, cluster, component.All())
		return nil
	})
	both.Go(func() error {
		f.reports, f.err = agents.Reports(ctx, cluster.Client, reach)
		return nil
	})
	_ = both.Wait() // nobody gives an error
	return all, f
}

// fleet is what status shows of the agents.
type fleet struct {
	reports []agents.Report
	err     error
}

// warnings is how many agents are not as they should be.
func (f *fleet) warnings() int {
	n := agents.SumUp(f.reports).WithTroubles
	if f.err != nil {
		n++
	}
	return n
}

// note is what the one agent of a cluster does and costs, for the line of its
// component. Several have lines of their own.
func (f *fleet) note() string {
	if len(f.reports) != 1 || f.reports[0].Quality == nil {
		return ""
	}
	return brief(f.reports)
}

// brief is what agents do and cost.
func brief(reports []agents.Report) string {
	s := agents.SumUp(reports)
	return fmt.Sprintf("%s Hz, %s %% CPU, %s MiB, lost %.2f %%", between("%d", s.RateLow, s.RateHigh), between("%.1f", s.CPULow, s.CPUHigh),
		between("%d", s.MemoryLow>>20, s.MemoryHigh>>20), s.Lost)
}

// between writes two values, or one where they look the same.
func between[T any](format string, low, high T) string {
	a, b := fmt.Sprintf(format, low), fmt.Sprintf(format, high)
	if a == b {
		return a
	}
	return a + " to " + b
}

const (
	mostAgents   = 10 // that have a line
	mostTroubles = 5
)

// table has a line for each agent; of many only those that are not as they should
// be. One agent is in the line of its component.
func (f *fleet) table(out io.Writer, style term.Style) error {
	if len(f.reports) < 2 {
		return nil
	}
	shown, rest := f.reports, []agents.Report(nil)
	if len(shown) > mostAgents {
		n := min(agents.SumUp(shown).WithTroubles, mostAgents) // they come first
		shown, rest = shown[:n], shown[n:]
	}
	var rows [][]string
	for i := range shown {
		rows = append(rows, agentRow(&shown[i]))
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	if len(rows) > 0 {
		if err := style.Table(out, []string{"node", "rate", "CPU", "memory", "lost", "stacks", "notes"}, rows); err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		return nil
	}
	more := "more agents"
	if len(rows) == 0 {
		more = "agents"
	}
	_, err := fmt.Fprintf(out, "%d %s: %s\n", len(rest), more, brief(rest))
	return err
}

func agentRow(r *agents.Report) []string {
	note := ""
	switch {
	case r.Quality == nil && len(r.Troubles) > 0: // why is said below
		what, _, _ := strings.Cut(r.Troubles[0].What, ": ")
		note = "! " + what
	case len(r.Troubles) > 0:
		note = "! " + r.Troubles[0].What
		if more := len(r.Troubles) - 1; more > 0 {
			note = fmt.Sprintf("! (1 of %d) %s", more+1, r.Troubles[0].What)
		}
	}
	if r.Quality == nil {
		return []string{profiler.Printable(r.Node), "?", "", "", "", "", note}
	}
	q := r.Quality
	s := agents.SumUp([]agents.Report{*r})
	complete := ""
	if s.Stacks > 0 {
		complete = fmt.Sprintf("%.1f %%", s.Complete)
	}
	return []string{
		profiler.Printable(r.Node), fmt.Sprintf("%d Hz", q.Frequency), fmt.Sprintf("%.1f %%", q.Cost.CPUPercent),
		fmt.Sprintf("%d MiB", s.MemoryLow>>20), fmt.Sprintf("%.2f %%", s.Lost), complete, note,
	}
}

// quality says how far profiles can be trusted, on lines no wider than width.
func (f *fleet) quality(width int) string {
	s := agents.SumUp(f.reports)
	if s.Stacks == 0 {
		return ""
	}
	parts := []string{fmt.Sprintf("profiling quality: %.1f %% of stacks complete", s.Complete)}
	if s.ReasonPercent >= 0.05 {
		parts = append(parts, fmt.Sprintf("%.1f %% %s", s.ReasonPercent, s.Reason))
	}
	parts = append(parts, fmt.Sprintf("%.1f %% of frames named", s.Named), fmt.Sprintf("lost %.2f %%", s.Lost))
	var b strings.Builder
	used := 0
	for i, part := range parts {
		n := utf8.RuneCountInString(part)
		switch {
		case i == 0:
		case width > 0 && used+3+n > width:
			b.WriteString("\n  ")
			used = 2
		default:
			b.WriteString(" · ")
			used += 3
		}
		b.WriteString(part)
		used += n
	}
	return b.String() + "\n"
}

var namedPod = regexp.MustCompile(`\bpod [^ :]+`)

// writeTroubles says in full what is not as it should be, once for all nodes where
// it is the same, and what to do about it.
func (f *fleet) writeTroubles(out io.Writer) error {
	if f.err != nil {
		t := agents.Trouble{What: f.err.Error()}
		var fault *profiler.Fault
		if errors.As(f.err, &fault) {
			t.Fix = fault.Fix
		}
		return writeTrouble(out, "agents: ", t)
	}
	// The same of two agents is the same whatever their pods are called.
	var order, first []agents.Trouble
	nodes := map[agents.Trouble][]string{}
	for i := range f.reports {
		r := &f.reports[i]
		for _, t := range r.Troubles {
			same := agents.Trouble{What: namedPod.ReplaceAllString(t.What, "pod"), Fix: namedPod.ReplaceAllString(t.Fix, "pod")}
			if nodes[same] == nil {
				order, first = append(order, same), append(first, t)
			}
			nodes[same] = append(nodes[same], profiler.Printable(r.Node))
		}
	}
	for i, t := range first {
		if i == mostTroubles {
			_, err := fmt.Fprintf(out, "\nand %d more of agents: kalypsoctl status -o json has all\n", len(order)-i)
			return err
		}
		on := nodes[order[i]]
		who := "agent on " + on[0] + ": "
		switch {
		case len(on) > 1:
			who = fmt.Sprintf("agents on %d nodes (%s, …): ", len(on), on[0])
		case strings.Contains(t.What, on[0]): // it does not answer
			who = ""
		}
		if err := writeTrouble(out, who, t); err != nil {
			return err
		}
	}
	return nil
}

func writeTrouble(out io.Writer, who string, t agents.Trouble) error {
	text := fmt.Sprintf("\n%s%s\n", who, t.What)
	if t.Fix != "" {
		text += fmt.Sprintf("fix: %s\n", t.Fix)
	}
	_, err := io.WriteString(out, text)
	return err
}

// statusAgent is one agent. Fields are added, not changed.
type statusAgent struct {
	Node            string         `json:"node"`
	Pod             string         `json:"pod,omitempty"`
	Answered        bool           `json:"answered"`
	Version         string         `json:"version,omitempty"`
	Started         *time.Time     `json:"started,omitempty"`
	Frequency       int            `json:"frequency"`
	WantedFrequency int            `json:"wanted_frequency"`
	CPUPercent      float64        `json:"cpu_percent"` // of the node's CPUs, now
	CPUBudget       float64        `json:"cpu_budget_percent"`
	MemoryBytes     int64          `json:"memory_bytes"` // with BPF maps
	MemoryBudget    int64          `json:"memory_budget_bytes"`
	Samples         uint64         `json:"samples"`
	LostPercent     float64        `json:"lost_percent"` // of the last minutes
	StacksComplete  float64        `json:"stacks_complete_percent"`
	FramesNamed     float64        `json:"frames_named_percent"`
	Warnings        []agentTrouble `json:"warnings,omitempty"`
}

type agentTrouble struct {
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

func (f *fleet) json() []statusAgent {
	out := make([]statusAgent, 0, len(f.reports))
	for i := range f.reports {
		r := &f.reports[i]
		a := statusAgent{Node: r.Node, Pod: r.Pod, Answered: r.Quality != nil}
		if q := r.Quality; q != nil {
			s := agents.SumUp(f.reports[i : i+1])
			a.Version, a.Started, a.Frequency, a.WantedFrequency = q.Version, &q.Started, q.Frequency, q.WantedFrequency
			a.CPUPercent, a.CPUBudget, a.MemoryBytes, a.MemoryBudget = q.Cost.CPUPercent, q.Cost.CPUBudget, s.MemoryLow, q.Cost.MemoryBudget
			a.Samples, a.LostPercent, a.StacksComplete, a.FramesNamed = q.Samples, s.Lost, s.Complete, s.Named
		}
		for _, t := range r.Troubles {
			a.Warnings = append(a.Warnings, agentTrouble(t))
		}
		out = append(out, a)
	}
	return out
}
