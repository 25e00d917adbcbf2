package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/input"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

func newConvertCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "convert IN OUT",
		Short: "a profile in another format: pprof to folded stacks, HTML, speedscope",
		Long: `Read a pprof file, of this profiler or another, and write it in the format that
the ending of OUT asks for: ` + output.Endings() + `.
OUT may be -, which writes folded stacks to standard output.`,
		Example: `  kalypsoctl convert shop.pb.gz shop.html             a flame graph in one file
  kalypsoctl convert shop.pb.gz - | flamegraph.pl     folded stacks for other tools`,
		Args: exactly(2, "convert takes a file to read and one to write", "shop.pb.gz shop.html"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readProfile(args[0])
			if err != nil {
				return err
			}
			out, err := output.NewProfile(args[1])
			if err != nil {
				return cli.Wrong(err)
			}
			defer out.Discard()
			return out.Write(p)
		},
	}
}

// exactly is the Args function of verbs that take so many.
func exactly(n int, what, example string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return cli.Usage(cmd.CommandPath()+" "+example, "%s", what)
		}
		return nil
	}
}

// maxProfile is the largest file that is read as a profile. Those of a busy
// machine have some MiB.
const maxProfile = 64 << 20

// readProfile reads a pprof file.
func readProfile(path string) (*profiler.Profile, error) {
	data, err := input.Read(path, maxProfile)
	if err != nil {
		return nil, &profiler.Fault{What: "cannot read " + path, Why: err, Fix: "give a file in pprof's format, as kalypsoctl profile and kalypso-agent record -o x.pb.gz write it"}
	}
	p, err := format.ReadPprof(bytes.NewReader(data))
	if err != nil {
		var fault *profiler.Fault
		if errors.As(err, &fault) && fault.Why != nil {
			err = fault.Why
		}
		return nil, &profiler.Fault{What: "cannot read " + path + " as a profile", Why: err, Fix: fmt.Sprintf("give a file in pprof's format (%s); others are written, not read", format.Pprof{}.Ending())}
	}
	return p, nil
}
