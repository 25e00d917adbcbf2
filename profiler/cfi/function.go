package cfi

// Function gives the start of the code that one entry describes and that holds
// addr: a function, or the part of one that the compiler moved elsewhere. It
// stands in for a name where there is no symbol.
func (x *Index) Function(addr uint64) (start uint64, ok bool) {
	rd := x.readers.Get().(*reader)
	defer func() {
		rd.reset()
		x.readers.Put(rd)
	}()
	for _, t := range x.tables {
		i := t.search(rd, addr)
		if i < 0 {
			continue
		}
		_, off, ok := t.entry(rd, i)
		if !ok {
			continue
		}
		if f, err := x.fde(rd, t, off); err == nil && addr >= f.start && addr < f.end {
			return f.start, true
		}
	}
	return 0, false
}
