// Command release makes a release out of the source that it stands in: programs,
// container images and charts, what each is made of, what changed, and signed
// checksums of all of it. The same commit and the same version of Go give the same bytes.
//
// It builds and packs, and brings nothing anywhere. As "release -set 0.2.0" it
// writes a version into the source instead: into VERSION, and into the charts.
//
// "make release" runs it; docs/reference/release.md tells what comes out.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

func main() {
	var (
		c       config
		created int64
		set     string
	)
	flag.StringVar(&c.source, "source", ".", "`DIR` of the source")
	flag.StringVar(&c.out, "o", "bin/release", "`DIR` to write; what is in it is deleted")
	flag.StringVar(&c.stamp, "version", "", "`VERSION` that programs say; it begins with that in the file VERSION")
	flag.StringVar(&c.revision, "revision", "", "`COMMIT` of the source")
	flag.Int64Var(&created, "created", 0, "time that images and charts say they were made at, in `SECONDS` since 1970")
	flag.StringVar(&c.upstream, "upstream", "", "`DIR` of packaged upstream charts to put into ours; without it they name theirs only")
	flag.StringVar(&c.key, "sign", "", "sign the checksums with the SSH key in `FILE`")
	flag.StringVar(&c.arch, "arch", "", "only for Linux on `ARCH`; a release has all platforms")
	flag.StringVar(&set, "set", "", "write this `VERSION` into the source, and release nothing")
	flag.Parse()
	c.created = time.Unix(created, 0).UTC()
	err := run(c, set)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// config says what is released and where it goes.
type config struct {
	source, out     string
	number          string // of the file VERSION: of charts, images and files
	stamp, revision string // of programs
	created         time.Time
	upstream        string
	key             string // that signs; "": nothing is signed
	arch            string // of Linux, that alone is built for; "": all platforms
}

func run(c config, set string) error {
	if set != "" {
		return setVersion(c.source, set)
	}
	var err error
	if c.number, err = readVersion(c.source); err != nil {
		return err
	}
	if c.stamp == "" {
		c.stamp = "v" + c.number
	}
	if c.stamp != "v"+c.number {
		// Charts and images have the number of the release that this is before.
		if !strings.HasPrefix(c.stamp, "v"+c.number+"-") {
			return fmt.Errorf("-version is %s, and the file VERSION has %s", c.stamp, c.number)
		}
		fmt.Fprintf(os.Stderr, "warning: this is no release: programs say %s\nfix:     git tag v%s on a commit without changes\n", c.stamp, c.number)
	}
	if c.key != "" {
		if _, err := os.Stat(c.key); err != nil {
			return fmt.Errorf("key to sign with: %w", err)
		}
	}
	if err := clear(c.out); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"charts", c.charts}, {"changelog", c.changelog}, {"licences", c.licences}, {"programs", c.programs}, {"checksums", c.checksums}, {"signature", c.signature},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// clear makes an empty folder. One with files of others is left alone: it has no
// checksums.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
			return fmt.Errorf("%s is not empty, and not from an earlier release", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, marker), nil, 0o644)
}

// marker is in folders that this program may empty.
const marker = ".release"

// readVersion reads the one place that has it.
func readVersion(source string) (string, error) {
	data, err := os.ReadFile(filepath.Join(source, versionFile))
	if err != nil {
		return "", err
	}
	v := strings.TrimSpace(string(data))
	if !valid(v) {
		return "", fmt.Errorf("the file VERSION has %q, which is no version such as 0.2.0 or 0.2.0-rc.1", v)
	}
	return v, nil
}

const versionFile = "VERSION"

// valid takes semantic versions without build metadata: tags of images cannot have
// the plus sign in front of it.
func valid(v string) bool {
	return semver.IsValid("v"+v) && semver.Canonical("v"+v) == "v"+v
}
