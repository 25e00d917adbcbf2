//go:build !linux

package elffile

import (
	"fmt"
	"os"
	"strings"
)

// OpenRegular opens the regular file path inside the root folder root. Away
// from Linux, where there are no target processes, links out of root are
// refused and not resolved inside it.
func OpenRegular(root, path string, follow bool) (*os.File, error) {
	if root == "" {
		root = "/"
	}
	path = strings.TrimLeft(path, "/")
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	st, err := r.Lstat(path)
	if err == nil && follow {
		st, err = r.Stat(path)
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	return r.Open(path)
}

func openPlain(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	return os.Open(path)
}
