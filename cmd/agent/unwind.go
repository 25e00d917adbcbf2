package main

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// unwindPage is how much code is turned into rows at once, as in the agent.
const unwindPage = 64 << 10

func newUnwindCommand() *cobra.Command {
	var (
		pc    string
		stats bool
	)
	cmd := &cobra.Command{
		Use:   "unwind FILE [flags]",
		Short: "print the unwind rows of an ELF file; for debugging stacks",
		Long: `Print the rows that the unwinder uses for an ELF file: from which address on a
rule holds, how it finds the CFA (the caller's stack pointer), the caller's
frame pointer and the return address. c-16 means "saved at CFA-16".
Addresses are those of the file, not of a process that has it mapped.`,
		Example: `  kalypso-agent unwind /usr/bin/bash | less            all rows
  kalypso-agent unwind /usr/bin/bash --pc 0x31337      the rule at one address (exit code 3: there is none)
  kalypso-agent unwind /usr/bin/bash --stats           how many, how big, how much of the code they cover`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return usage(helpOf(cmd), "unwind takes one file, not %d", len(args))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			byPC := cmd.Flags().Changed("pc")
			if byPC && stats {
				return usage(helpOf(cmd), "--pc and --stats exclude each other")
			}
			var addr uint64
			if byPC {
				var err error
				if addr, err = strconv.ParseUint(pc, 0, 64); err != nil {
					return usage(fmt.Sprintf("%s %s --pc 0x401000", cmd.CommandPath(), args[0]), "--pc cannot be %q: it is an address", pc)
				}
			}
			f, x, opened, err := openUnwind(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read from
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			known := true
			switch {
			case byPC:
				known, err = printUnwindAt(out, f, x, addr)
			case stats:
				err = printUnwindStats(out, f, x, opened)
			default:
				err = printUnwindRows(out, f, x)
			}
			if err == nil {
				err = out.Flush()
			}
			switch {
			case errors.Is(err, cfi.ErrTooComplex):
				return &profiler.Fault{What: "cannot build unwind rows of " + f.Path(), Why: err,
					Fix: "the file is damaged or made to exhaust its reader: rebuild or reinstall it"}
			case err != nil:
				return fmt.Errorf("print unwind rows of %s: %w", f.Path(), err)
			case !known:
				return exitError{exitNotHealthy}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&pc, "pc", "", "print only the rule in force at this `ADDRESS`")
	f.BoolVar(&stats, "stats", false, "print counts, sizes and times instead of rows")
	return cmd
}

// openUnwind opens the file and its index, and says how long the latter took.
func openUnwind(path string) (*elffile.File, *cfi.Index, time.Duration, error) {
	f, err := elffile.Open(path)
	if err != nil {
		fault := &profiler.Fault{What: "cannot read " + path + " as an ELF file", Why: err,
			Fix: "give an executable or a shared library; \"file " + path + "\" tells what this is"}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			fault.Fix = "check the path; for a program in a container use /proc/PID/root" + path
		case errors.Is(err, fs.ErrPermission):
			fault.Fix = "run it as root, or as a user who may read the file"
		}
		return nil, nil, 0, fault
	}
	start := time.Now()
	x, err := cfi.Open(f)
	took := time.Since(start)
	if err == nil {
		return f, x, took, nil
	}
	_ = f.Close() // only read from
	fault := &profiler.Fault{What: "there are no unwind rows for " + path, Why: err}
	switch {
	case errors.Is(err, cfi.ErrMachine):
		fault.Fix = "give a 64-bit little-endian file for x86-64 or aarch64"
	case errors.Is(err, cfi.ErrNoCFI) && (f.Section(".gopclntab") != nil || f.Section(".data.rel.ro.gopclntab") != nil):
		fault.Fix = "nothing to mend: Go code is unwound by frame pointers and its own tables"
	case errors.Is(err, cfi.ErrNoCFI):
		fault.Fix = "compile with -fasynchronous-unwind-tables, or with -fno-omit-frame-pointer: then frame pointers are used"
	}
	return nil, nil, 0, fault
}

// eachUnwindPage calls do with the rows of each page of code, in the order of
// the file's segments. The rows are valid during the call.
func eachUnwindPage(f *elffile.File, x *cfi.Index, do func(rows []cfi.Row, high uint64) error) error {
	var rows []cfi.Row
	for _, p := range f.Segments() {
		end := p.Vaddr + p.Filesz
		if p.Flags&elf.PF_X == 0 || end < p.Vaddr {
			continue
		}
		for low := p.Vaddr; low < end; {
			high := min(low&^(unwindPage-1)+unwindPage, end)
			if high <= low { // the last page of the address space
				high = end
			}
			var err error
			if rows, err = x.Rows(rows[:0], low, high); err != nil {
				return err
			}
			if err := do(rows, high); err != nil {
				return err
			}
			low = high
		}
	}
	return nil
}

func printUnwindRows(w io.Writer, f *elffile.File, x *cfi.Index) error {
	if _, err := fmt.Fprintf(w, "%-18s %-24s %-12s %s\n", "address", "cfa", "fp", "ra"); err != nil {
		return err
	}
	var last cfi.Rule
	first := true
	return eachUnwindPage(f, x, func(rows []cfi.Row, _ uint64) error {
		for _, r := range rows {
			// A page starts with a row of its own; people need not see it.
			if !first && r.Rule == last {
				continue
			}
			first, last = false, r.Rule
			if err := printUnwindRow(w, f.Machine(), r); err != nil {
				return err
			}
		}
		return nil
	})
}

func printUnwindRow(w io.Writer, m elf.Machine, r cfi.Row) error {
	cfa, fp, ra := r.Rule.Text(m)
	var err error
	if fp == "" {
		_, err = fmt.Fprintf(w, "0x%016x %s\n", r.PC, cfa)
	} else {
		_, err = fmt.Fprintf(w, "0x%016x %-24s %-12s %s\n", r.PC, cfa, fp, ra)
	}
	return err
}

// printUnwindAt prints the rule at addr and tells whether there is one.
func printUnwindAt(w io.Writer, f *elffile.File, x *cfi.Index, addr uint64) (bool, error) {
	rows, err := x.Rows(nil, addr, addr+1)
	if err != nil {
		return false, err
	}
	row := cfi.Row{PC: addr}
	if len(rows) > 0 {
		row = rows[0]
	}
	return row.Rule.CFA != cfi.CFANone, printUnwindRow(w, f.Machine(), row)
}

func printUnwindStats(w io.Writer, f *elffile.File, x *cfi.Index, opened time.Duration) error {
	var rows, unsupported int
	var covered, code uint64
	rules := map[cfi.Rule]struct{}{}
	text := executableSections(f)
	start := time.Now()
	err := eachUnwindPage(f, x, func(page []cfi.Row, high uint64) error {
		rows += len(page)
		for i, r := range page {
			end := high
			if i+1 < len(page) {
				end = page[i+1].PC
			}
			rules[r.Rule] = struct{}{}
			if r.Rule.CFA == cfi.CFAUnsupported {
				unsupported++
			}
			n := overlap(text, r.PC, end)
			code += n
			if r.Rule.CFA != cfi.CFANone {
				covered += n
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	took := time.Since(start)
	share := 0.0
	if code > 0 {
		share = 100 * float64(covered) / float64(code)
	}
	_, err = fmt.Fprintf(w, `fdes             %d
rows             %d
distinct rules   %d
unsupported rows %d
row bytes        %d (4 a row)
index bytes      %d
open time        %v
build time       %v
code bytes       %d
code covered     %.1f %%
`, x.FDEs(), rows, len(rules), unsupported, 4*rows, x.Bytes(), opened.Round(time.Microsecond), took.Round(time.Microsecond), code, share)
	return err
}

// addressRange is [low, high).
type addressRange struct{ low, high uint64 }

// executableSections gives where code is: by sections, because linkers put
// headers and read-only data into the executable segment; by segments when
// there are no section headers.
func executableSections(f *elffile.File) []addressRange {
	var text []addressRange
	for _, s := range f.ELF.Sections {
		if s.Flags&elf.SHF_EXECINSTR != 0 && s.Flags&elf.SHF_ALLOC != 0 && s.Type != elf.SHT_NOBITS {
			text = append(text, addressRange{s.Addr, s.Addr + s.Size})
		}
	}
	if text == nil {
		for _, p := range f.Segments() {
			if p.Flags&elf.PF_X != 0 {
				text = append(text, addressRange{p.Vaddr, p.Vaddr + p.Filesz})
			}
		}
	}
	return text
}

// overlap is how many bytes of [low, high) are in text.
func overlap(text []addressRange, low, high uint64) uint64 {
	var n uint64
	for _, r := range text {
		if from, to := max(r.low, low), min(r.high, high); from < to {
			n += to - from
		}
	}
	return n
}
