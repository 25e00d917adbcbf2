package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kalypso-dev/kalypso/release/spdx"
)

const sumsFile = "SHA256SUMS"

// checksums writes the checksum of every file, as "sha256sum -c" reads them.
func (c config) checksums() error {
	var b strings.Builder
	err := filepath.WalkDir(c.out, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == marker {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.out, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s  %s\n", spdx.Sum(data), filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Println("  " + filepath.Join(c.out, sumsFile))
	return os.WriteFile(c.file(sumsFile), []byte(b.String()), 0o644)
}

// licences copies those that programs and charts are under.
func (c config) licences() error {
	for _, name := range []string{"LICENSE", "LICENSES"} {
		path := filepath.Join(c.source, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = os.CopyFS(c.file(name), os.DirFS(path))
		} else {
			var data []byte
			if data, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(c.file(name), data, 0o644)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
