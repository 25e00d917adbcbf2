// Package guest is what the host and the machines of the kernel matrix say to
// each other: a list of commands in, one result for each out; and which program
// of the host's stands for what a test would have compiled.
package guest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Run is a command.
type Run struct {
	Name    string
	Command []string
	Dir     string   // that it runs in
	Env     []string // over the machine's own
	Files   []string // to send back
	Seconds int      // it may take, by the machine's own clock
	Long    bool     // only where the machine is started with LongRuns
}

// Result is what a command did.
type Result struct {
	Name    string
	Error   string // empty: exit code 0
	Stdout  string
	Stderr  string
	Files   map[string]string // those that are there
	Seconds float64
}

// LongRuns on the kernel's command line comes to the first process as a variable.
const LongRuns = "KALYPSO_LONG=1"

// A result is JSON, packed with gzip, in base64, on lines that begin with
// Line; Over ends it, and End is the last line of all.
const (
	Line = "KLP:"
	Over = "KLP."
	End  = "KLP!"
)

// Compilation reads the arguments of a C compiler: a name for what it would make
// of them, the same on the host and in the machine, and where that goes. What
// counts is the flags, in any order, and the text of the sources.
func Compilation(args []string) (name, out string, err error) {
	var parts []string
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "-o" && i+1 < len(args):
			i++
			out = args[i]
		case strings.HasSuffix(arg, ".c"):
			text, err := os.ReadFile(arg)
			if err != nil {
				return "", "", err
			}
			parts = append(parts, string(text))
		default:
			parts = append(parts, arg)
		}
	}
	if out == "" {
		return "", "", errors.New("the compiler is not told where to write: there is no -o")
	}
	slices.Sort(parts)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(parts, "\x00")))), out, nil
}
