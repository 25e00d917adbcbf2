package cfi

import (
	"slices"
	"sync"
	"testing"
)

// TestRowsConcurrently builds the same pages from several goroutines, forwards
// and backwards, and compares them with what one goroutine got.
func TestRowsConcurrently(t *testing.T) {
	const page, pages = 64 << 10, 12
	_, x := openIndex(t, libc(t))
	low := x.code[0].low
	want := make([][]Row, pages)
	for i := range want {
		var err error
		from := low + uint64(i)*page
		if want[i], err = x.Rows(nil, from, from+page); err != nil {
			t.Fatal(err)
		}
		checkRows(t, want[i], from, from+page)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range pages {
				i := n
				if g%2 == 1 {
					i = pages - 1 - n
				}
				from := low + uint64(i)*page
				rows, err := x.Rows(nil, from, from+page)
				if err != nil || !slices.Equal(rows, want[i]) {
					t.Errorf("page %d: rows differ from those built alone (error %v)", i, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestIndexHoldsLittle keeps the promise that lets a huge executable be
// indexed: far less than one byte per FDE where the file has a search table.
func TestIndexHoldsLittle(t *testing.T) {
	_, x := openIndex(t, libc(t))
	if x.FDEs() < 1000 {
		t.Fatalf("the C library has %d FDEs?", x.FDEs())
	}
	if got := x.Bytes(); got > x.FDEs() {
		t.Errorf("%d bytes held for %d FDEs", got, x.FDEs())
	}
}
