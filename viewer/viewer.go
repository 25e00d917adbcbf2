// Package viewer is the page that shows a profile: one HTML file with its
// styles, script and data inside, which opens from disk and loads nothing. It
// knows profiles only as profiler.Profile. The page is page.html, style.css
// and the scripts beside this file, written by hand and joined when a page is
// written; there is no build step.
package viewer

import (
	"bufio"
	"compress/zlib"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

//go:embed page.html style.css data.js model.js flame.js app.js
var sources embed.FS

// Link is what a page that is served leads to from its head: other pages of
// the same server.
type Link struct {
	Text    string `json:"text"`
	Href    string `json:"href"`
	Current bool   `json:"current,omitempty"` // what is shown already
}

// Write writes the page with the profile inside. Without links it is whole by
// itself.
func Write(w io.Writer, p *profiler.Profile, links ...Link) error {
	page, err := source("page.html")
	if err != nil {
		return err
	}
	style, err := source("style.css")
	if err != nil {
		return err
	}
	// Spaces beside punctuation mean nothing in this style sheet: it has no
	// strings with them and no selector of the form "a :hover".
	style = strings.NewReplacer(": ", ":", "; ", ";", " { ", "{", " {", "{", ";}", "}", "; }", "}", " }", "}", ", ", ",", "\n", "").Replace(style)
	// No string of the scripts has these operators between spaces.
	operators := strings.NewReplacer(" = ", "=", " === ", "===", " => ", "=>", " && ", "&&", " || ", "||")
	script := "\"use strict\";\n"
	for _, name := range []string{"data.js", "model.js", "flame.js", "app.js"} {
		s, err := source(name)
		if err != nil {
			return err
		}
		script += operators.Replace(s)
	}
	title := "CPU profile"
	if p.Host != "" {
		title += " of " + profiler.Printable(p.Host)
	}
	// The policy allows this style and this script, and no request at all, so
	// even a name that got into the page as markup could do nothing.
	policy := fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; img-src data:; base-uri 'none'; form-action 'none'",
		digest(style), digest(script))

	head, tail, ok := strings.Cut(page, "@data@")
	if !ok {
		return fmt.Errorf("page.html has no place for the data")
	}
	fill := strings.NewReplacer("@policy@", policy, "@title@", html.EscapeString(title), "@style@", style, "@script@", script)

	b := bufio.NewWriterSize(w, 64<<10)
	b.WriteString(fill.Replace(head))
	if err := pack(b, newDocument(p, links)); err != nil {
		return err
	}
	b.WriteString(fill.Replace(tail))
	return b.Flush()
}

// source reads a part of the page without what only its readers need:
// indentation, empty lines and comments that have a line of their own. No part
// has strings or elements that go over several lines and mean their spaces.
func source(name string) (string, error) {
	b, err := sources.ReadFile(name)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			out.WriteString(line)
			out.WriteByte('\n')
		}
	}
	return out.String(), nil
}

// digest is the hash by which a content security policy allows inline code.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// pack writes JSON, deflated, as base64: a tenth of the JSON's size, and
// without any character that means something in HTML.
func pack(w io.Writer, d *document) error {
	text := base64.NewEncoder(base64.StdEncoding, w)
	z, err := zlib.NewWriterLevel(text, zlib.DefaultCompression)
	if err != nil {
		return err
	}
	tables, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("write profile into page: %w", err)
	}
	b := bufio.NewWriterSize(z, 32<<10)
	b.Write(tables[:len(tables)-1]) // without its closing brace
	b.WriteByte(',')
	d.writeNodes(b)
	b.WriteByte('}')
	if err := b.Flush(); err != nil { // the writer keeps its first error
		return fmt.Errorf("write profile into page: %w", err)
	}
	if err := z.Close(); err != nil {
		return err
	}
	return text.Close()
}
