// Package lang is what the agent asks of every language runtime: which
// executables are yours, how are your frames unwound, what are they called.
//
// Lifetimes: a Runtime lives as long as the agent, a Program as long as an
// executable is known (one per build ID, shared by all its processes), and so,
// today, does its one Instance: native and Go code are named without the
// process. What an interpreter will need is in docs/decisions/0015. Code made
// at run time lies in no executable: the pipeline opens the process's perf map.
package lang

import (
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Runtime recognises the executables of one language.
type Runtime interface {
	// Name is the word used in docs, labels and flags: "go", "native".
	Name() string
	// Recognise is called once per executable. nil, nil means: not mine.
	// root is the root folder of a process that runs the file
	// ("/proc/PID/root"), where its separate debug files are looked for.
	Recognise(f *elffile.File, root string) (Program, error)
}

// Range is a half-open range of virtual addresses of an ELF file.
type Range struct{ Low, High uint64 }

// Program is one executable as its runtime sees it. Its methods are called
// from several goroutines.
type Program interface {
	// Ranges are the addresses of the file that this runtime answers for.
	Ranges() []Range
	// Rows appends the unwind rows that cover [low, high), sorted by address.
	// The first row's PC is low, gaps are rows with cfi.CFANone.
	Rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error)
	// Attach prepares for naming frames. It is called once, with the process in
	// which the executable was seen first; the Instance names the frames of all
	// its processes, and may outlive that one.
	Attach(pid profiler.PID) (Instance, error)
	// Bytes is the memory held for rows and names, without the file's own.
	Bytes() int
	// Trim lets go of what can be read again. Whoever uses the program
	// meanwhile is not disturbed.
	Trim()
}

// Instance names the frames of a program, or of one process's perf map.
type Instance interface {
	// Symbolize appends the frames of one address, innermost first; nothing
	// when it has no name. addr is the exact address of an instruction: the
	// caller has already stepped back from return addresses.
	Symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error)
	Close() error
}
