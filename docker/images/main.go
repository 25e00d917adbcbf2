// Command images writes the container images of our programs, without Docker:
// for each an OCI layout with one image per architecture and its SBOM, and one
// archive per architecture, as containerd and Docker import them.
//
// It packs programs that were built before and knows how neither is built nor
// pushed. The same programs and flags give the same bytes.
//
// "make images" runs it; docs/reference/images.md tells what comes out.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/release/program"
)

func main() {
	var (
		c       config
		arch    string
		created int64
	)
	flag.StringVar(&c.binaries, "binaries", "bin", "`DIR` with linux-ARCH/PROGRAM")
	flag.StringVar(&arch, "arch", "amd64,arm64", "`ARCHITECTURES`")
	flag.StringVar(&c.out, "o", "bin/images", "`DIR` to write; an earlier image in it is an error")
	flag.StringVar(&c.repository, "repository", "ghcr.io/kalypso-dev", "registry and `NAME` in front of each program's")
	flag.StringVar(&c.tag, "tag", "", "`TAG` of the images")
	flag.StringVar(&c.revision, "revision", "", "commit of the source")
	flag.Int64Var(&created, "created", 0, "time that images say they were made at, in `SECONDS` since 1970")
	flag.Parse()
	c.architectures = strings.Split(arch, ",")
	c.created = time.Unix(created, 0).UTC()
	if info, ok := debug.ReadBuildInfo(); ok {
		c.tool = info
	}
	if err := run(c); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// config says what goes into images and where they go.
type config struct {
	binaries, out             string
	architectures             []string
	repository, tag, revision string
	created                   time.Time
	tool                      *debug.BuildInfo // of this program, for the version of the certificates
}

func run(c config) error {
	if c.tag == "" {
		return errors.New("-tag is missing: charts name images by the version of their application")
	}
	for _, p := range program.All() {
		if err := c.write(p); err != nil {
			return fmt.Errorf("image of %s: %w", p.Name, err)
		}
	}
	return nil
}

// write makes the images of a program and everything that goes with them.
func (c config) write(p program.Program) error {
	var made []platformImage
	for _, arch := range c.architectures {
		m, err := c.image(p, arch)
		if err != nil {
			return err
		}
		made = append(made, m)
	}
	if err := os.MkdirAll(c.out, 0o755); err != nil {
		return err
	}
	index, err := c.writeLayout(p, made)
	if err != nil {
		return err
	}
	fmt.Printf("%s/%s:%s\n  %s  %s\n", c.repository, p.Name, c.tag, index, filepath.Join(c.out, p.Name))
	for _, m := range made {
		base := filepath.Join(c.out, fmt.Sprintf("%s-%s-linux-%s", p.Name, c.tag, m.arch))
		if err := c.writeArchive(p, m, base+".tar"); err != nil {
			return err
		}
		if err := os.WriteFile(base+".spdx.json", m.sbom, 0o644); err != nil {
			return err
		}
		digest, err := m.Digest()
		if err != nil {
			return err
		}
		fmt.Printf("  %s  %s.tar\n", digest, base)
	}
	return nil
}
