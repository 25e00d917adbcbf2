// Package charts holds the Helm charts of the stack, one folder for each
// release, and hands them out as file systems. It knows no Helm: what a chart
// means, in which order charts are installed and with which values is decided
// by who opens them. Upstream charts are named in Chart.yaml by version and
// repository and are not in here.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

// "all:" because Go leaves out files whose names begin with an underscore, and
// _helpers.tpl is one.
//
//go:embed all:kalypso-*
var files embed.FS

// Open gives the files of a chart by its name, such as kalypso-mimir.
func Open(name string) (fs.FS, error) {
	// A name with a slash would open a folder inside a chart.
	info, err := fs.Stat(files, name)
	if err != nil || !info.IsDir() || name == "." || strings.Contains(name, "/") {
		return nil, fmt.Errorf("there is no chart %q", name)
	}
	chart, err := fs.Sub(files, name)
	if err != nil {
		return nil, fmt.Errorf("open the chart %q: %w", name, err)
	}
	return chart, nil
}

// Names of all charts, sorted.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // the root of an embedded file system is always there
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}
