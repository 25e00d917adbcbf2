package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/semver"

	"github.com/kalypso-dev/kalypso/release/program"
)

// Dockerfiles cannot be built where there is no Docker. What can be known without
// is that they take what is there, with the Go that go.mod asks for, and end like
// the images that this package writes.
func TestDockerfiles(t *testing.T) {
	for _, p := range program.All() {
		path := "../" + strings.TrimPrefix(p.Name, "kalypso-") + ".Dockerfile"
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(data), "\\\n", " ")
			for _, want := range []string{"\nUSER " + p.User + "\n", "\nENTRYPOINT [\"" + folder + p.Name + "\"]\n", "-o /image" + folder + p.Name + " ",
				"CGO_ENABLED=0", "GOARCH=$TARGETARCH", "-trimpath", "--platform=$BUILDPLATFORM", "\nFROM scratch\n"} {
				if !strings.Contains(text, want) {
					t.Errorf("it does not have %q", want)
				}
			}
			for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) \S+$`).FindAllStringSubmatch(text, -1) {
				for _, source := range strings.Fields(m[1]) {
					if _, err := os.Stat(filepath.Join("../..", source)); err != nil {
						t.Errorf("it copies %s: %v", source, err)
					}
				}
			}
			command := regexp.MustCompile(`\./cmd/\S+`).FindString(text)
			if _, err := os.Stat(filepath.Join("../..", command, "main.go")); err != nil {
				t.Errorf("it builds %s: %v", command, err)
			}
			image := regexp.MustCompile(`FROM \S+ golang:(\d+\.\d+\.\d+)-[a-z]+ AS build`).FindStringSubmatch(text)
			mod, err := os.ReadFile("../../go.mod")
			if err != nil {
				t.Fatal(err)
			}
			asked := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(string(mod))[1]
			if image == nil || semver.Compare("v"+image[1], "v"+asked) < 0 || semver.MajorMinor("v"+image[1]) != semver.MajorMinor("v"+asked) {
				t.Errorf("it builds with %v, go.mod asks for %s", image, asked)
			}
		})
	}
}

// Docker is not told of what .dockerignore has; no file that is compiled or
// embedded may be among that.
func TestDockerignore(t *testing.T) {
	data, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "list", "-deps", "-f", `{{if not .Standard}}{{.Dir}}{{end}}`, "../../cmd/agent", "../../cmd/kalypsoctl").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for dir := range strings.Lines(string(out)) {
		rel, ok := strings.CutPrefix(strings.TrimSpace(dir), root+"/")
		if !ok {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && (rel == line || strings.HasPrefix(rel, line+"/")) {
				t.Errorf("%s is ignored, by %q", rel, line)
			}
		}
	}
}
