package cli

import (
	"encoding/json"
	"io"
)

// WriteJSON prints a document for a program, indented, with <, > and & as they
// are.
func WriteJSON(w io.Writer, document any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(document)
}
