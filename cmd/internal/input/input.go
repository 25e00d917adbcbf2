// Package input reads the files of settings that a person names. It knows
// nothing of what is in them.
package input

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Read gives what is in a file of at most limit bytes. It takes regular files
// only, and opens without waiting: a pipe that nobody writes to would never be
// read to its end. The error is without the path.
func Read(path string, limit int64) ([]byte, error) {
	data, err := read(path, limit)
	var withPath *fs.PathError
	if errors.As(err, &withPath) {
		return nil, withPath.Err
	}
	return data, err
}

func read(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, syscall.EISDIR
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	return data, nil
}
