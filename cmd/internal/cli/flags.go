package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// FlagError is cobra's hook for whatever its flag parser does not like.
func FlagError(cmd *cobra.Command, err error) error {
	fix := HelpOf(cmd)
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return Wrong(flagFault(cmd, err))
	}
	name := missing.GetSpecifiedName()
	if !cmd.HasParent() && (name == "version" || name == "v") {
		fix = cmd.CommandPath() + " version"
	}
	if missing.GetSpecifiedShortnames() != "" {
		return Usage(fix, "%s has no flag -%s", cmd.CommandPath(), name)
	}
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f.Name)
		}
	})
	if word := near.Word(name, flags); word != "" {
		fix = cmd.CommandPath() + " --" + word
	}
	return Usage(fix, "%s has no flag --%s", cmd.CommandPath(), name)
}

// flagFault says in our own words what is wrong with the value of a flag; the
// flag parser's are strconv's.
func flagFault(cmd *cobra.Command, err error) *profiler.Fault {
	var missing *pflag.ValueRequiredError
	if errors.As(err, &missing) {
		return &profiler.Fault{What: Typed(missing.GetFlag()) + " needs a value", Fix: HelpOf(cmd)}
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return &profiler.Fault{What: err.Error(), Fix: HelpOf(cmd)}
	}
	flag, value := invalid.GetFlag(), invalid.GetValue()
	name := Typed(flag)
	fault := &profiler.Fault{What: fmt.Sprintf("%s cannot be %q", name, value), Why: errors.Unwrap(err), Fix: HelpOf(cmd)}
	switch flag.Value.Type() {
	case "duration":
		if _, err := time.ParseDuration(value); err == nil {
			return fault // it is one, and this flag takes no such
		}
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
	case "int", "int64":
		fault.Why = errors.New("it takes a whole number")
		if flag.DefValue != "0" {
			fault.Fix = name + " " + flag.DefValue + " is the default"
		}
	}
	return fault
}

// Typed is a flag as most people type it.
func Typed(flag *pflag.Flag) string {
	if flag.Shorthand != "" {
		return "-" + flag.Shorthand
	}
	return "--" + flag.Name
}
