package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/profiler"
)

const pidFix = "pgrep -l NAME lists PIDs; -a records every process"

// flagFault says in our own words what is wrong with the value of a flag; the
// flag parser's are strconv's. It is nil for errors of another kind.
func flagFault(cmd *cobra.Command, err error) *profiler.Fault {
	var missing *pflag.ValueRequiredError
	if errors.As(err, &missing) {
		return &profiler.Fault{What: typed(missing.GetFlag()) + " needs a value", Fix: helpOf(cmd)}
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return nil
	}
	flag, value := invalid.GetFlag(), invalid.GetValue()
	name := typed(flag)
	fault := &profiler.Fault{What: fmt.Sprintf("%s cannot be %q", name, value), Why: errors.Unwrap(err), Fix: helpOf(cmd)}
	switch flag.Value.Type() {
	case "uintSlice":
		for pid := range strings.SplitSeq(value, ",") {
			if n, err := strconv.ParseUint(pid, 10, 64); err != nil || n > math.MaxInt32 {
				fault.What = fmt.Sprintf("there can be no PID %q", pid)
				break
			}
		}
		fault.Why, fault.Fix = errors.New("a PID is a whole number above 0; several are -p 1 -p 2, or -p 1,2"), pidFix
	case "duration":
		fault.Why, fault.Fix = errors.New("a duration is a number and its unit: 500ms, 10s, 5m, 1h"), name+" 10s"
		if _, err := time.ParseDuration(value + "s"); err == nil {
			fault.Fix = name + " " + value + "s"
		}
	case "bool":
		fault.Why, fault.Fix = errors.New("it takes true and false"), fmt.Sprintf("%s=true or %s=false", name, name)
		switch strings.ToLower(value) {
		case "yes", "y", "on":
			fault.Fix = name + "=true"
		case "no", "n", "off":
			fault.Fix = name + "=false"
		}
	case "int":
		fault.Why, fault.Fix = errors.New("it takes a whole number"), name+" "+flag.DefValue+" is the default"
	}
	return fault
}

// typed is a flag as most people type it.
func typed(flag *pflag.Flag) string {
	if flag.Shorthand != "" {
		return "-" + flag.Shorthand
	}
	return "--" + flag.Name
}
