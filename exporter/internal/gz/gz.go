// Package gz compresses what the exporters and the formats write. It keeps its
// writers: one has 800 kB of tables, and a new one for each window and file was
// a twentieth of all that an agent does on an idle machine.
package gz

import (
	"compress/gzip"
	"fmt"
	"io"
	"sync"
)

// Level is how hard to try.
type Level int

// The levels, with what a window of 610 kB takes; gzip's own default takes 15 ms
// for 153 kB.
const (
	Fast  Level = 1 // 3 ms and 174 kB: for what stays in memory
	Small Level = 4 // 5 ms and 159 kB: for what is sent and kept on disk
)

var writers = map[Level]*sync.Pool{Fast: pool(Fast), Small: pool(Small)}

func pool(level Level) *sync.Pool {
	return &sync.Pool{New: func() any {
		w, err := gzip.NewWriterLevel(nil, int(level))
		if err != nil {
			panic(err) // it is one that there is
		}
		return w
	}}
}

// Write writes parts, one after another, as one gzip file. The same parts give
// the same bytes.
func Write(to io.Writer, level Level, parts ...[]byte) error {
	w, _ := writers[level].Get().(*gzip.Writer)
	defer writers[level].Put(w)
	w.Reset(to)
	for _, part := range parts {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return nil
}
