package main

import (
	"context"
	"fmt"
	"math"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

// spinVerb is the hidden verb that doctor records: a known stack on a CPU.
const spinVerb = "spin"

// spinLimit ends it even when nobody does.
const spinLimit = 5 * time.Second

func newSpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:    spinVerb,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), spinUntil(time.Now().Add(spinLimit)))
			return err
		},
	}
}

//go:noinline
func spinUntil(end time.Time) (sum float64) {
	for time.Now().Before(end) {
		sum += spinLeaf(100_000)
	}
	return sum
}

// spinLeaf calls nothing: its caller is found without a frame of its own.
//
//go:noinline
func spinLeaf(n int) (sum float64) {
	for i := range n {
		sum += math.Sqrt(float64(i))
	}
	return sum
}

// recordSpin records the known stack for a moment. chain is what each of its
// samples should hold, leaf first.
func recordSpin(ctx context.Context) (p *profiler.Profile, chain []string, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	child := exec.CommandContext(ctx, "/proc/self/exe", spinVerb)
	if err := child.Start(); err != nil {
		return nil, nil, fmt.Errorf("start a process to record: %w", err)
	}
	defer func() {
		stop()
		_ = child.Wait() // it was killed
	}()
	p, _, err = pipeline.Record(ctx, pipeline.Config{
		Runtimes: runtimes(), OpenPerfMap: openPerfMap, Frequency: 499, Duration: 500 * time.Millisecond,
		PIDs: []profiler.PID{profiler.PID(child.Process.Pid)},
	})
	return p, []string{"main.spinLeaf", "main.spinUntil", "main.main", "runtime.main", "runtime.goexit"}, err
}
