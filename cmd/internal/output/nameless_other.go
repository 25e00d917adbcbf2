//go:build !linux

package output

import (
	"errors"
	"os"
)

// nameless makes none: only Linux has files without names.
func nameless(string, string) (*os.File, error) { return nil, nil }

func link(*os.File, string) error { return errors.ErrUnsupported }
