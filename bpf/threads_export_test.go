package bpf

// SetUnfiltered makes Read go through all threads of the machine, as on kernels
// before 6.1.
func (t *Threads) SetUnfiltered() { t.unfiltered = true }

// Unfiltered says that it does.
func (t *Threads) Unfiltered() bool { return t.unfiltered }
