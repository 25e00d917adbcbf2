package main

import (
	"fmt"
	"runtime/debug"

	"github.com/kalypso-dev/kalypso/release/program"
	"github.com/kalypso-dev/kalypso/release/spdx"
)

// sbom lists what is in an image: the program, what was linked into it, and the
// certificates.
func (c config) sbom(p program.Program, arch string, info *debug.BuildInfo, binary []byte) ([]byte, error) {
	d := spdx.New(fmt.Sprintf("%s/%s:%s linux/%s", c.repository, p.Name, c.tag, arch),
		fmt.Sprintf("%s-%s-%s", p.Name, arch, spdx.Sum(binary)), "docker/images", c.created)
	d.Program(p, c.tag, c.revision, info, binary)
	roots := spdx.Module(rootsModule, version(c.tool, rootsModule), "NOASSERTION")
	roots.Purpose = "FILE"
	d.Describe(roots)
	return d.JSON()
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
