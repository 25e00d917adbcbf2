// Package guest is what the host and the machines of the kernel matrix say to
// each other: a list of commands in, one result for each out.
package guest

// Run is a command.
type Run struct {
	Name    string
	Command []string
	Files   []string // to send back
	Seconds int      // it may take, by the machine's own clock
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

// A result is JSON, packed with gzip, in base64, on lines that begin with
// Line; Over ends it, and End is the last line of all.
const (
	Line = "KLP:"
	Over = "KLP."
	End  = "KLP!"
)
