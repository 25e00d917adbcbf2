package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/profiler"
)

const pidFix = "pgrep -l NAME lists PIDs; -a records every process"

// flagError says what a PID is where one is wrong, and leaves all other errors
// of the flag parser to cli.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) || invalid.GetFlag().Value.Type() != "uintSlice" {
		return cli.FlagError(cmd, err)
	}
	fault := &profiler.Fault{
		What: fmt.Sprintf("%s cannot be %q", cli.Typed(invalid.GetFlag()), invalid.GetValue()),
		Why:  errors.New("a PID is a whole number above 0; several are -p 1 -p 2, or -p 1,2"),
		Fix:  pidFix,
	}
	for pid := range strings.SplitSeq(invalid.GetValue(), ",") {
		if n, err := strconv.ParseUint(pid, 10, 64); err != nil || n > math.MaxInt32 {
			fault.What = fmt.Sprintf("there can be no PID %q", pid)
			break
		}
	}
	return cli.Wrong(fault)
}
