package profiler

// Fault is an error for a person: what happened, why, and what to do about
// it. Commands print it as the three lines "error:", "cause:", "fix:".
type Fault struct {
	What string // lower case, no full stop
	Why  error  // nil when What says it all
	Fix  string // a command or a sentence; may be empty
	Kind error  // an error that callers decide on, by errors.Is; nil of most
}

// Error gives what happened and why, on one line.
func (f *Fault) Error() string {
	if f.Why == nil {
		return f.What
	}
	return f.What + ": " + f.Why.Error()
}

// Is says whether the fault is of this kind. Its cause may be of others.
func (f *Fault) Is(kind error) bool { return f.Kind != nil && f.Kind == kind }

// Unwrap gives the cause.
func (f *Fault) Unwrap() error { return f.Why }
