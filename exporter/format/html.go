package format

import (
	"io"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

// HTML is the viewer's page with the profile inside: one file, opened by any
// browser, that loads nothing.
type HTML struct{}

// Ending is ".html".
func (HTML) Ending() string { return ".html" }

// Write writes the page.
func (HTML) Write(w io.Writer, p *profiler.Profile) error { return viewer.Write(w, p) }
