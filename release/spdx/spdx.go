// Package spdx writes what a released file is made of, as SPDX 2.3 in JSON
// (https://spdx.github.io/spdx-spec/v2.3/). It knows how Go programs say what was
// linked into them; what else goes into a document is for the caller.
package spdx

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/release/program"
)

// Document is an SBOM.
type Document struct {
	Version       string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      Creation       `json:"creationInfo"`
	Packages      []Package      `json:"packages"`
	Relationships []Relationship `json:"relationships"`
}

// Creation is when a document was made, and by what.
type Creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

// Package is a program, a module, a chart.
type Package struct {
	ID            string     `json:"SPDXID"`
	Name          string     `json:"name"`
	Version       string     `json:"versionInfo"`
	Location      string     `json:"downloadLocation"`
	FilesAnalyzed bool       `json:"filesAnalyzed"`
	License       string     `json:"licenseDeclared,omitempty"`
	Purpose       string     `json:"primaryPackagePurpose,omitempty"`
	Checksums     []Checksum `json:"checksums,omitempty"`
	References    []External `json:"externalRefs,omitempty"`
}

// Checksum of a package's file.
type Checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

// External is what others call a package.
type External struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

// Relationship of two packages, or of the document and one.
type Relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// New makes a document that holds nothing. What it is about has a name for people
// and one that no other file has, such as name and checksum; tool is the package
// of ours that writes it.
func New(name, unique, tool string, created time.Time) *Document {
	return &Document{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Namespace: "https://" + program.Module + "/sbom/" + unique,
		Creation:  Creation{created.UTC().Format(time.RFC3339), []string{"Tool: " + program.Module + "/" + tool}},
	}
}

// Describe adds a package that the document is about.
func (d *Document) Describe(p Package) {
	d.Add(d.ID, "DESCRIBES", p)
}

// Add adds a package that another is related to.
func (d *Document) Add(from, how string, p Package) {
	d.Packages = append(d.Packages, p)
	d.Relationships = append(d.Relationships, Relationship{from, how, p.ID})
}

// Program adds a program of ours: itself, Go's standard library and the modules
// that the linker took, by the program's own build information.
func (d *Document) Program(p program.Program, version, revision string, info *debug.BuildInfo, binary []byte) {
	main := Package{ID: "SPDXRef-Program", Name: p.Name, Version: version, Location: Source(revision),
		License: p.Licenses, Purpose: "APPLICATION", Checksums: []Checksum{{"SHA256", Sum(binary)}}}
	d.Describe(main)
	std := Module("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "https://go.dev/dl/")
	std.License = "BSD-3-Clause"
	d.Add(main.ID, "STATIC_LINK", std)
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		d.Add(main.ID, "STATIC_LINK", Module(dep.Path, dep.Version, "https://proxy.golang.org/"+escape(dep.Path)+"/@v/"+escape(dep.Version)+".zip"))
	}
}

// JSON is the document as it is released.
func (d *Document) JSON() ([]byte, error) {
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the SBOM: %w", err)
	}
	return append(data, '\n'), nil
}

// Source is where our own files come from, at a commit where it is known.
func Source(revision string) string {
	location := "git+https://" + program.Module + ".git"
	if revision != "" {
		location += "@" + revision
	}
	return location
}

// Sum is a SHA-256 as SPDX writes it.
func Sum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Module is a package of Go's module proxy.
func Module(path, version, location string) Package {
	p := Package{ID: ID("Go", path), Name: path, Version: version, Location: location}
	p.References = []External{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}}
	return p
}

// notInID is what an identifier of SPDX cannot have.
var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// ID is the identifier of a package of a kind.
func ID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + notInID.ReplaceAllString(name, "-")
}

// escape writes a path or version as the module proxy has it: file systems that
// do not tell capitals apart are why.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('!')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
