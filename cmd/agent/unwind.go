package main

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
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
frame pointer and the return address. c-16 means "saved at CFA-16". Rows that
end with "code" were derived from the instructions: there is no call frame
information for them.
Addresses are those of the file, not of a process that has it mapped.`,
		Example: `  kalypso-agent unwind /usr/bin/bash | less            all rows
  kalypso-agent unwind /usr/bin/bash --pc 0x31337      the rule at one address (exit code 3: there is none)
  kalypso-agent unwind /usr/bin/bash --stats           how many, how big, how much of the code they cover`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return cli.Usage(cli.HelpOf(cmd), "unwind takes one file, not %d", len(args))
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			byPC := cmd.Flags().Changed("pc")
			if byPC && stats {
				return cli.Usage(cli.HelpOf(cmd), "--pc and --stats exclude each other")
			}
			var addr uint64
			if byPC {
				var err error
				if addr, err = strconv.ParseUint(pc, 0, 64); err != nil {
					return cli.Usage(fmt.Sprintf("%s %s --pc 0x401000", cmd.CommandPath(), args[0]), "--pc cannot be %q: it is an address", pc)
				}
			}
			x, err := openUnwind(args[0])
			if err != nil {
				return err
			}
			f := x.file
			defer func() { _ = f.Close() }() // only read from
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			known := true
			switch {
			case byPC:
				known, err = printUnwindAt(out, x, addr)
			case stats:
				err = printUnwindStats(out, x)
			default:
				err = printUnwindRows(out, x)
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
				return cli.Exit(cli.ExitNotHealthy)
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

// unwindFile is a file with the index that the agent uses, and the one that
// knows only its entries.
type unwindFile struct {
	file    *elffile.File
	index   *cfi.Index
	entries *cfi.Index // nil: the file has none
	opened  time.Duration
}

// openUnwind opens the file and its index, and says how long the latter took.
func openUnwind(path string) (*unwindFile, error) {
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
		return nil, fault
	}
	x := &unwindFile{file: f}
	start := time.Now()
	x.index, err = cfi.Options{Code: true}.Open(f)
	x.opened = time.Since(start)
	if err == nil {
		x.entries, err = cfi.Open(f)
		if err == nil || !isGo(f) {
			return x, nil
		}
	}
	_ = f.Close() // only read from
	fault := &profiler.Fault{What: "there are no unwind rows for " + path, Why: err}
	switch {
	case errors.Is(err, cfi.ErrMachine):
		fault.Fix = "give a 64-bit little-endian file for x86-64 or aarch64"
	case isGo(f):
		fault.Fix = "nothing to mend: Go code is unwound by frame pointers and its own tables"
	case errors.Is(err, cfi.ErrNoCFI):
		fault.Fix = "the file has no code: give an executable or a shared library"
	}
	return nil, fault
}

func isGo(f *elffile.File) bool {
	return f.Section(".gopclntab") != nil || f.Section(".data.rel.ro.gopclntab") != nil
}

// unwindRow is a row with where it ends and where it comes from.
type unwindRow struct {
	cfi.Row
	end     uint64
	derived bool // from code
}

// rows gives the rows of [low, high).
func (x *unwindFile) rows(low, high uint64) ([]unwindRow, error) {
	rows, err := x.index.Rows(nil, low, high)
	if err != nil {
		return nil, err
	}
	entries := []cfi.Row{{PC: low}}
	if x.entries != nil {
		if entries, err = x.entries.Rows(nil, low, high); err != nil {
			return nil, err
		}
	}
	var out []unwindRow
	for i, n := 0, 0; i < len(rows); i++ {
		end := high
		if i+1 < len(rows) {
			end = rows[i+1].PC
		}
		// A row that serves both kinds of code is split where they meet.
		for pc := rows[i].PC; pc < end; {
			for n+1 < len(entries) && entries[n+1].PC <= pc {
				n++
			}
			derived := entries[n].Rule.CFA == cfi.CFANone && rows[i].Rule.CFA != cfi.CFANone
			next := end
			if n+1 < len(entries) {
				next = min(next, entries[n+1].PC)
			}
			if k := len(out) - 1; k >= 0 && out[k].derived == derived && out[k].Rule == rows[i].Rule {
				out[k].end = next
			} else {
				out = append(out, unwindRow{cfi.Row{PC: pc, Rule: rows[i].Rule}, next, derived})
			}
			pc = next
		}
	}
	return out, nil
}

// eachUnwindPage calls do with the rows of each page of code, in the order of
// the file's segments.
func eachUnwindPage(x *unwindFile, do func(rows []unwindRow) error) error {
	for _, p := range x.file.Segments() {
		end := p.Vaddr + p.Filesz
		if p.Flags&elf.PF_X == 0 || end < p.Vaddr {
			continue
		}
		for low := p.Vaddr; low < end; {
			high := min(low&^(unwindPage-1)+unwindPage, end)
			if high <= low { // the last page of the address space
				high = end
			}
			rows, err := x.rows(low, high)
			if err != nil {
				return err
			}
			if err := do(rows); err != nil {
				return err
			}
			low = high
		}
	}
	return nil
}

func printUnwindRows(w io.Writer, x *unwindFile) error {
	if _, err := fmt.Fprintf(w, "%-18s %-24s %-12s %s\n", "address", "cfa", "fp", "ra"); err != nil {
		return err
	}
	var last unwindRow
	first := true
	return eachUnwindPage(x, func(rows []unwindRow) error {
		for _, r := range rows {
			// A page starts with a row of its own; people need not see it.
			if !first && r.Rule == last.Rule && r.derived == last.derived {
				continue
			}
			first, last = false, r
			if err := printUnwindRow(w, x.file.Machine(), r); err != nil {
				return err
			}
		}
		return nil
	})
}

func printUnwindRow(w io.Writer, m elf.Machine, r unwindRow) error {
	cfa, fp, ra := r.Rule.Text(m)
	line := fmt.Sprintf("0x%016x %-24s %-12s %-12s", r.PC, cfa, fp, ra)
	if r.derived {
		line += " code"
	}
	_, err := fmt.Fprintln(w, strings.TrimRight(line, " "))
	return err
}

// printUnwindAt prints the rule at addr and tells whether there is one.
func printUnwindAt(w io.Writer, x *unwindFile, addr uint64) (bool, error) {
	rows, err := x.rows(addr, addr+1)
	if err != nil {
		return false, err
	}
	row := unwindRow{Row: cfi.Row{PC: addr}}
	if len(rows) > 0 {
		row = rows[0]
	}
	return row.Rule.CFA != cfi.CFANone, printUnwindRow(w, x.file.Machine(), row)
}

func printUnwindStats(w io.Writer, x *unwindFile) error {
	var rows, derived, unsupported int
	var covered, fromCode, code uint64
	rules := map[cfi.Rule]struct{}{}
	text := executableSections(x.file)
	start := time.Now()
	err := eachUnwindPage(x, func(page []unwindRow) error {
		rows += len(page)
		for _, r := range page {
			rules[r.Rule] = struct{}{}
			if r.Rule.CFA == cfi.CFAUnsupported {
				unsupported++
			}
			n := overlap(text, r.PC, r.end)
			code += n
			if r.Rule.CFA != cfi.CFANone {
				covered += n
			}
			if r.derived {
				derived++
				fromCode += n
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	took := time.Since(start)
	share := func(n uint64) float64 { return 100 * float64(n) / float64(max(code, 1)) }
	_, err = fmt.Fprintf(w, `fdes             %d
rows             %d
rows from code   %d
distinct rules   %d
unsupported rows %d
row bytes        %d (4 a row)
index bytes      %d
open time        %v
build time       %v
code bytes       %d
code covered     %.1f %%
derived          %.1f %% (rows from code)
`, x.index.FDEs(), rows, derived, len(rules), unsupported, 4*rows, x.index.Bytes(), x.opened.Round(time.Microsecond), took.Round(time.Microsecond), code, share(covered), share(fromCode))
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
