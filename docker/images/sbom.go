package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"time"
)

// document is an SBOM in SPDX 2.3: https://spdx.github.io/spdx-spec/v2.3/.
type document struct {
	Version       string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID            string     `json:"SPDXID"`
	Name          string     `json:"name"`
	Version       string     `json:"versionInfo"`
	Location      string     `json:"downloadLocation"`
	FilesAnalyzed bool       `json:"filesAnalyzed"`
	License       string     `json:"licenseDeclared,omitempty"`
	Purpose       string     `json:"primaryPackagePurpose,omitempty"`
	Checksums     []checksum `json:"checksums,omitempty"`
	References    []external `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// sbom lists what is in an image: the program, the modules and the standard
// library that the linker took, by the program's own build information, and the
// certificates.
func (c config) sbom(p program, arch string, info *debug.BuildInfo, binary []byte) ([]byte, error) {
	sum := sha256.Sum256(binary)
	digest := hex.EncodeToString(sum[:])
	d := document{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT",
		Name:      fmt.Sprintf("%s/%s:%s linux/%s", c.repository, p.name, c.tag, arch),
		Namespace: fmt.Sprintf("https://%s/sbom/%s-%s-%s", module, p.name, arch, digest),
		Creation:  creation{c.created.Format(time.RFC3339), []string{"Tool: " + module + "/docker/images"}},
	}
	main := spdxPackage{ID: "SPDXRef-Program", Name: p.name, Version: c.tag, Location: "git+https://" + module + ".git",
		License: p.licenses, Purpose: "APPLICATION", Checksums: []checksum{{"SHA256", digest}}}
	if c.revision != "" {
		main.Location += "@" + c.revision
	}
	d.Packages = append(d.Packages, main)
	d.relate(d.ID, "DESCRIBES", main.ID)
	std := goPackage("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "https://go.dev/dl/")
	std.License = "BSD-3-Clause"
	d.add(main.ID, "STATIC_LINK", std)
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		d.add(main.ID, "STATIC_LINK", goPackage(dep.Path, dep.Version, "https://proxy.golang.org/"+escape(dep.Path)+"/@v/"+escape(dep.Version)+".zip"))
	}
	roots := goPackage(rootsModule, version(c.tool, rootsModule), "NOASSERTION")
	roots.Purpose = "FILE"
	d.Packages = append(d.Packages, roots)
	d.relate(d.ID, "DESCRIBES", roots.ID)

	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the SBOM: %w", err)
	}
	return append(data, '\n'), nil
}

func (d *document) add(from, how string, p spdxPackage) {
	d.Packages = append(d.Packages, p)
	d.relate(from, how, p.ID)
}

func (d *document) relate(from, how, to string) {
	d.Relationships = append(d.Relationships, relationship{from, how, to})
}

// notInID is what an identifier of SPDX cannot have.
var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func goPackage(path, version, location string) spdxPackage {
	p := spdxPackage{ID: "SPDXRef-Go-" + notInID.ReplaceAllString(path, "-"), Name: path, Version: version, Location: location}
	p.References = []external{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}}
	return p
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

// version of a module that a program was built with.
func version(info *debug.BuildInfo, module string) string {
	if info != nil {
		for _, d := range info.Deps {
			if d.Path == module {
				return d.Version
			}
		}
	}
	return "NOASSERTION"
}
