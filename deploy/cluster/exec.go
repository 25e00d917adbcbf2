package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// grace is how long a program may take to end that was asked to.
const grace = 30 * time.Second

// runner starts programs. They share the terminal: sudo asks for its password,
// and what takes minutes shows how far it is.
type runner struct {
	in   io.Reader
	show io.Writer
}

// run shows what the program prints.
func (r runner) run(ctx context.Context, argv []string) error {
	cmd := command(ctx, argv)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.in, r.show, r.show
	return ended(ctx, argv, cmd.Run(), "what it printed is above")
}

// output gives what the program prints, and shows nothing.
func (r runner) output(ctx context.Context, argv []string) ([]byte, error) {
	cmd := command(ctx, argv)
	var out, words bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.in, &out, &words
	err := cmd.Run()
	return out.Bytes(), ended(ctx, argv, err, lastLine(words.String()))
}

func command(ctx context.Context, argv []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Asked to end, the tools take back what is half done themselves.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = grace
	return cmd
}

// ended makes an error of how a program ended, with what it said.
func ended(ctx context.Context, argv []string, err error, said string) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.As(err, &exit):
		return fmt.Errorf("start %s: %w", argv[0], err)
	case said == "":
		return fmt.Errorf("%s ended with %s", argv[0], exit.ProcessState)
	}
	return fmt.Errorf("%s ended with %s: %s", argv[0], exit.ProcessState, said)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
