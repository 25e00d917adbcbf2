package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/release/program"
	"github.com/kalypso-dev/kalypso/release/spdx"
)

// programs builds every program for its platforms, and the images out of those for
// Linux.
func (c config) programs() error {
	built, err := os.MkdirTemp("", "kalypso-release-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(built) }()
	for _, p := range program.All() {
		for _, platform := range c.platforms(p) {
			if err := c.build(p, platform, built); err != nil {
				return fmt.Errorf("%s for %s: %w", p.Name, platform, err)
			}
		}
	}
	images := c.command("go", "run", "-trimpath", "./docker/images", "-tag", c.number, "-revision", c.revision,
		"-created", strconv.FormatInt(c.created.Unix(), 10), "-binaries", built, "-o", c.file("images"))
	if c.arch != "" {
		images.Args = append(images.Args, "-arch", c.arch)
	}
	images.Stdout = os.Stdout
	return images.Run()
}

// platforms are those that a program is built for.
func (c config) platforms(p program.Program) []string {
	if c.arch != "" {
		return []string{"linux/" + c.arch}
	}
	return p.Platforms
}

// build builds a program for a platform and writes what it is made of.
func (c config) build(p program.Program, platform, folder string) error {
	system, arch, _ := strings.Cut(platform, "/")
	out := filepath.Join(folder, system+"-"+arch, p.Name)
	stamp := "-X main.version=" + c.stamp
	if c.revision != "" {
		stamp += " -X main.commit=" + c.revision
	}
	build := c.command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", stamp, "-o", out, p.Command)
	build.Env = append(build.Env, "GOOS="+system, "GOARCH="+arch)
	if err := build.Run(); err != nil {
		return err
	}
	data, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	info, err := buildinfo.Read(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("read its build information: %w", err)
	}
	name := fmt.Sprintf("%s-%s-%s-%s", p.Name, c.number, system, arch)
	d := spdx.New(name, name+"-"+spdx.Sum(data), "release", c.created)
	d.Program(p, c.stamp, c.revision, info, data)
	sbom, err := d.JSON()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file(name+".spdx.json"), sbom, 0o644); err != nil {
		return err
	}
	fmt.Println("  " + filepath.Join(c.out, name))
	return os.WriteFile(c.file(name), data, 0o755)
}

// command runs in the source, with nothing in its environment that changes what
// Go builds.
func (c config) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = c.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off", "GOAMD64=v1", "GOARM64=v8.0", "GOFIPS140=off", "LC_ALL=C", "TZ=UTC")
	cmd.Stderr = os.Stderr
	return cmd
}

// file is the path of one of the release.
func (c config) file(name string) string {
	path, err := filepath.Abs(filepath.Join(c.out, name))
	if err != nil {
		panic(err) // only where there is no working directory
	}
	return path
}
