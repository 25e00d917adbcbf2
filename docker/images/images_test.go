package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kalypso-dev/kalypso/release/program"
	"github.com/kalypso-dev/kalypso/release/spdx"
)

func architectures() []string { return []string{"amd64", "arm64"} }

// build makes a small program for every architecture, under the name of each of
// ours.
func build(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() { println(\"hello\") }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, arch := range architectures() {
		for _, p := range program.All() {
			goBuild(t, filepath.Join(dir, "linux-"+arch, p.Name), src, "GOARCH="+arch, "CGO_ENABLED=0")
		}
	}
	return dir
}

func goBuild(t *testing.T, out, src string, env ...string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, src)
	cmd.Env = append(append(os.Environ(), "GOOS=linux"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
}

func testConfig(binaries, out string) config {
	return config{binaries: binaries, out: out, architectures: architectures(), repository: "example.org/kalypso", tag: "1.2.3",
		revision: "0123456789abcdef", created: time.Unix(1_700_000_000, 0).UTC()}
}

// tree is every file below a folder, with its contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path) // both are below dir
		files[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestSameBytes(t *testing.T) {
	binaries, first, second := build(t), t.TempDir(), t.TempDir()
	for _, out := range []string{first, second} {
		if err := run(testConfig(binaries, out)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := tree(t, first), tree(t, second)
	for path := range a {
		if a[path] != b[path] {
			t.Errorf("%s differs", path)
		}
	}
	if len(a) != len(b) || len(a) < 20 {
		t.Errorf("%d files, then %d", len(a), len(b))
	}
	if err := run(testConfig(binaries, first)); err == nil {
		t.Error("it writes over images that are there")
	}
}

func TestLayout(t *testing.T) {
	out := t.TempDir()
	if err := run(testConfig(build(t), out)); err != nil {
		t.Fatal(err)
	}
	for _, p := range program.All() {
		t.Run(p.Name, func(t *testing.T) {
			path, err := layout.FromPath(filepath.Join(out, p.Name))
			if err != nil {
				t.Fatal(err)
			}
			root, err := path.ImageIndex()
			if err != nil {
				t.Fatal(err)
			}
			entries, err := root.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			if got := entries.Manifests[0].Annotations[refName]; got != "1.2.3" {
				t.Errorf("the index is named %q", got)
			}
			index, err := root.ImageIndex(entries.Manifests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(index); err != nil {
				t.Error(err)
			}
			manifest, err := index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			var platforms, subjects, images []string
			for _, m := range manifest.Manifests {
				platforms = append(platforms, m.Platform.String())
				images = append(images, m.Digest.String())
				img, err := index.Image(m.Digest)
				if err != nil {
					t.Fatal(err)
				}
				checkImage(t, p, m.Platform.Architecture, img)
			}
			if diff := cmp.Diff(platforms, []string{"linux/amd64", "linux/arm64"}); diff != "" {
				t.Errorf("platforms (-got +want):\n%s", diff)
			}
			for _, d := range entries.Manifests[1:] {
				var referrer v1.Manifest
				raw, err := path.Bytes(d.Digest)
				if err == nil {
					err = json.Unmarshal(raw, &referrer)
				}
				if err != nil || referrer.ArtifactType != sbomType || d.ArtifactType != sbomType || referrer.Subject == nil {
					t.Fatalf("%s is no SBOM of an image: %v\n%s", d.Digest, err, raw)
				}
				subjects = append(subjects, referrer.Subject.Digest.String())
			}
			if diff := cmp.Diff(subjects, images); diff != "" {
				t.Errorf("images with an SBOM (-got +want):\n%s", diff)
			}
		})
	}
}

// checkImage holds an image to what a pod expects of it.
func checkImage(t *testing.T, p program.Program, arch string, img v1.Image) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != arch || c.OS != "linux" {
		t.Errorf("the configuration says %s/%s", c.OS, c.Architecture)
	}
	if c.Config.User != p.User || !slices.Equal(c.Config.Entrypoint, []string{"/usr/local/bin/" + p.Name}) {
		t.Errorf("it runs %v as %s", c.Config.Entrypoint, c.Config.User)
	}
	if p.Name == "kalypsoctl" && strings.HasPrefix(c.Config.User, "0") {
		t.Error("kalypsoctl runs as root")
	}
	for label, want := range map[string]string{"title": p.Name, "version": "1.2.3", "revision": "0123456789abcdef", "created": "2023-11-14T22:13:20Z", "licenses": p.Licenses} {
		if got := c.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	found := map[string]int64{}
	var bundle []byte
	files := mutate.Extract(img)
	defer func() { _ = files.Close() }()
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h.Mode
		if h.Uid != 0 || h.ModTime.Unix() != 1_700_000_000 {
			t.Errorf("%s belongs to %d and is of %v", h.Name, h.Uid, h.ModTime)
		}
		if strings.HasSuffix(h.Name, ".crt") {
			if bundle, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]int64{"etc/ssl/certs/ca-certificates.crt": 0o644, "tmp": 0o1777, "usr/local/bin/" + p.Name: 0o755}
	if diff := cmp.Diff(found, want); diff != "" {
		t.Errorf("files (-got +want):\n%s", diff)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(bundle) || bytes.Count(bundle, []byte("BEGIN CERTIFICATE")) < 100 {
		t.Errorf("%d bytes of certificates", len(bundle))
	}
}

func TestArchive(t *testing.T) {
	out := t.TempDir()
	if err := run(testConfig(build(t), out)); err != nil {
		t.Fatal(err)
	}
	for _, arch := range architectures() {
		path := filepath.Join(out, "kalypsoctl-1.2.3-linux-"+arch+".tar")
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(path) })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(manifest[0].RepoTags, []string{"example.org/kalypso/kalypsoctl:1.2.3"}); diff != "" {
			t.Errorf("tags (-got +want):\n%s", diff)
		}
		img, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		checkImage(t, program.All()[1], arch, img)
	}
}

func TestProgramThatWouldNotStart(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "linux-arm64", "kalypso-agent")
	goBuild(t, path, src, "GOARCH=amd64", "CGO_ENABLED=0")
	if err := run(testConfig(dir, t.TempDir())); err == nil {
		t.Error("there is an image without a program in it")
	}
	c := testConfig(dir, t.TempDir())
	if _, err := c.image(program.All()[0], "arm64"); err == nil || !strings.Contains(err.Error(), "it is for linux/amd64") {
		t.Errorf("a program of another architecture: %v", err)
	}
	if err := fits(&debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "GOOS", Value: "linux"}, {Key: "GOARCH", Value: "arm64"}, {Key: "CGO_ENABLED", Value: "1"}}}, "arm64"); err == nil {
		t.Error("a program that needs a C library is taken")
	}
}

// Every module that is linked into a program is in its SBOM, by its version.
func TestSBOM(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Deps: []*debug.Module{
		{Path: "github.com/BurntSushi/toml", Version: "v1.6.0"},
		{Path: "example.org/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/new", Version: "v2.0.0"}},
	}}
	c := testConfig("", "")
	c.tool = &debug.BuildInfo{Deps: []*debug.Module{{Path: rootsModule, Version: "v0.1.0"}}}
	data, err := c.sbom(program.All()[1], "arm64", info, []byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	var d spdx.Document
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	linked := 0
	ids := map[string]bool{d.ID: true}
	for _, p := range d.Packages {
		got[p.Name] = p.Version
		if ids[p.ID] {
			t.Errorf("two packages are %s", p.ID)
		}
		ids[p.ID] = true
		if p.Name == "github.com/BurntSushi/toml" && p.Location != "https://proxy.golang.org/github.com/!burnt!sushi/toml/@v/v1.6.0.zip" {
			t.Errorf("toml is at %s", p.Location)
		}
	}
	want := map[string]string{"kalypsoctl": "1.2.3", "stdlib": "1.26.8", "github.com/BurntSushi/toml": "v1.6.0", "example.org/new": "v2.0.0", rootsModule: "v0.1.0"}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("packages (-got +want):\n%s", diff)
	}
	for _, r := range d.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%+v is about what is not there", r)
		}
		if r.Type == "STATIC_LINK" {
			linked++
		}
	}
	if linked != 3 {
		t.Errorf("%d modules are linked, want 3", linked)
	}
}
