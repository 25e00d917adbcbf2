package config

import (
	"crypto/sha256"

	"github.com/kalypso-dev/kalypso/cmd/internal/input"
)

// Watch knows the text of the file of settings, to tell when there is another.
// It goes by the text and not by the file's time and number: a kubelet that
// brings a new ConfigMap exchanges a symbolic link on the way to it.
type Watch struct {
	path string
	sum  [sha256.Size]byte
}

// Watched is the file to look at again and again; nil: none.
func (c *Config) Watched() *Watch {
	if !c.WatchFile || c.file.path == "" {
		return nil
	}
	w := c.file
	return &w
}

// Changed says whether the text is another than when this was last asked, or than
// the settings were read from. A file that cannot be read is one without text.
func (w *Watch) Changed() bool {
	data, _ := input.Read(w.path, fileLimit) // who reads the settings tells why it cannot
	before := w.sum
	w.sum = sha256.Sum256(data)
	return w.sum != before
}
