// Package program lists the programs that are released and what is said of each:
// in images, in SBOMs, and in the names of files. It knows neither how they are
// built nor where they are brought.
package program

// Module is the source of all of them.
const Module = "github.com/kalypso-dev/kalypso"

// Program is one that is released.
type Program struct {
	Name      string
	Title     string
	Command   string   // the package that is built, from the root of the source
	Platforms []string // as Go writes them, linux/amd64
	User      string   // that it runs as in its image
	Licenses  string   // an expression of SPDX
}

// All programs.
func All() []Program {
	return []Program{
		{Name: "kalypso-agent", Title: "profiles everything that runs on a node, by eBPF", Command: "./cmd/agent",
			Platforms: []string{"linux/amd64", "linux/arm64"},
			// BPF programs are loaded by root: a process of another user would need
			// its capabilities on the file as well, and kubelets have no way to give
			// them otherwise.
			User: "0:0", Licenses: "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"},
		{Name: "kalypsoctl", Title: "installs and runs the Kalypso observability stack", Command: "./cmd/kalypsoctl",
			Platforms: []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"},
			User:      "65532:65532", Licenses: "Apache-2.0"},
	}
}
