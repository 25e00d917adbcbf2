package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"helm.sh/helm/v3/pkg/chart/loader"
	helm "helm.sh/helm/v3/pkg/registry"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/release/program"
	"github.com/kalypso-dev/kalypso/release/spdx"
)

func testConfig(t *testing.T) config {
	t.Helper()
	number, err := readVersion("..")
	if err != nil {
		t.Fatal(err)
	}
	return config{source: "..", out: t.TempDir(), number: number, stamp: "v" + number, revision: "0123456789abcdef", created: time.Unix(1_700_000_000, 0).UTC()}
}

// tree is every file below a folder, with its contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
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

func same(t *testing.T, a, b map[string]string) {
	t.Helper()
	for path := range a {
		if a[path] != b[path] {
			t.Errorf("%s differs", path)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d files, then %d", len(a), len(b))
	}
}

func TestChartsSameBytes(t *testing.T) {
	first, second := testConfig(t), testConfig(t)
	for _, c := range []config{first, second} {
		if err := c.charts(); err != nil {
			t.Fatal(err)
		}
	}
	a := tree(t, first.out)
	same(t, a, tree(t, second.out))
	for _, chart := range charts.Names() {
		archive := a["charts/"+chart+"-"+first.number+".tgz"]
		got, err := loader.LoadArchive(strings.NewReader(archive))
		if err != nil {
			t.Fatalf("Helm does not load %s: %v", chart, err)
		}
		if got.Name() != chart || got.Metadata.Version != first.number || len(got.Templates) == 0 || got.Schema == nil {
			t.Errorf("%s is loaded as %s %s with %d templates", chart, got.Name(), got.Metadata.Version, len(got.Templates))
		}
		var sbom spdx.Document
		if err := json.Unmarshal([]byte(a["charts/"+chart+"-"+first.number+".spdx.json"]), &sbom); err != nil {
			t.Fatal(err)
		}
		if sbom.Packages[0].Checksums[0].Value != spdx.Sum([]byte(archive)) || len(sbom.Packages) != 1+len(got.Metadata.Dependencies) {
			t.Errorf("the SBOM of %s is of another file, or has %d packages", chart, len(sbom.Packages))
		}
	}
}

// What is pushed from a layout is what Helm pulls.
func TestHelmPullsChart(t *testing.T) {
	c := testConfig(t)
	if err := c.charts(); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New())
	defer server.Close()
	push(t, server, c.file("charts/oci/kalypso-agent"), "charts/kalypso-agent", c.number)
	client, err := helm.NewClient(helm.ClientOptPlainHTTP())
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := client.Pull(strings.TrimPrefix(server.URL, "http://") + "/charts/kalypso-agent:" + c.number)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(c.file("charts/kalypso-agent-" + c.number + ".tgz"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pulled.Chart.Data, want) || pulled.Chart.Meta.Name != "kalypso-agent" || pulled.Chart.Meta.AppVersion != c.number {
		t.Errorf("Helm pulls %d bytes of %+v, want %d", len(pulled.Chart.Data), pulled.Chart.Meta, len(want))
	}
}

// push brings a layout of one manifest to a registry.
func push(t *testing.T, server *httptest.Server, dir, repository, tag string) {
	t.Helper()
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := entries.Manifests[0].Annotations["org.opencontainers.image.ref.name"]; got != tag {
		t.Errorf("the layout has %q", got)
	}
	image, err := index.Image(entries.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	send := func(method, at string, kind types.MediaType, data []byte) {
		t.Helper()
		req, err := http.NewRequest(method, server.URL+"/v2/"+repository+at, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", string(kind))
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = res.Body.Close(); res.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, at, res.Status)
		}
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		data, err := path.Bytes(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		send(http.MethodPost, "/blobs/uploads/?digest="+d.Digest.String(), d.MediaType, data)
	}
	send(http.MethodPut, "/manifests/"+tag, manifest.MediaType, raw)
}

func TestUpstreamChartsArePutIn(t *testing.T) {
	c := testConfig(t)
	c.upstream = t.TempDir()
	if err := c.charts(); err == nil || !strings.Contains(err.Error(), "kalypsoctl charts pull") {
		t.Errorf("without the files of upstream charts: %v", err)
	}
	files, err := charts.Open("kalypso-tempo")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := pack("tempo", fsOnly(t, "apiVersion: v2\nname: tempo\nversion: 2.2.4\n"), nil, c.created)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.upstream, "tempo-2.2.4.tgz"), packed, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.chart("kalypso-tempo", files); err != nil {
		t.Fatal(err)
	}
	got, err := loader.LoadFile(c.file("charts/kalypso-tempo-" + c.number + ".tgz"))
	if err != nil {
		t.Fatal(err)
	}
	if deps := got.Dependencies(); len(deps) != 1 || deps[0].Name() != "tempo" {
		t.Errorf("it has %v", deps)
	}
}

func fsOnly(t *testing.T, chartYAML string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Chart.yaml"), []byte(chartYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	return os.DirFS(dir)
}

func TestSection(t *testing.T) {
	const text = "# Changelog\n\nWhat.\n\n## Unreleased\n\n* new\n\n## 0.2.0 (2026-01-02)\n\n* second\n* more\n\n## 0.1.10\n\n* tenth\n\n## 0.1.1\n\n* first\n\n## 0.1.0-rc.1\n"
	for version, want := range map[string]string{
		"0.3.0": "* new", "0.2.0": "* second\n* more", "0.1.10": "* tenth", "0.1.1": "* first",
		"0.1.0": "* new", "0.1.0-rc.1": "",
	} {
		if got := section(text, version); got != want {
			t.Errorf("of %s: %q, want %q", version, got, want)
		}
	}
	if got := section("# Changelog\n", "0.1.0"); got != "" {
		t.Errorf("of a page without sections: %q", got)
	}
}

func TestChanges(t *testing.T) {
	got := changes("0.2.0", "* what users see", "v0.1.0", []string{"bpf: faster", "deploy/helm, charts: pins", "one thing: another", "bpf: smaller", "kalypsoctl upgrade, diff"})
	want := `# 0.2.0

* what users see

## 5 commits since v0.1.0

### bpf

* faster
* smaller

### deploy/helm, charts

* pins

### other

* one thing: another
* kalypsoctl upgrade, diff
`
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestCommitsSinceTheTagBefore(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	commit := func(subject string) { t.Helper(); git("commit", "-q", "--allow-empty", "-m", subject) }
	git("init", "-q")
	commit("a: first")
	commit("a: second")
	for _, step := range []struct {
		rule   string
		do     func()
		before string
		want   []string
	}{
		{"without a tag it is all of them", func() {}, "", []string{"a: first", "a: second"}},
		{"the version's own tag is not the one before", func() { git("tag", "v1.0.0") }, "", []string{"a: first", "a: second"}},
		{"they begin after the last version", func() { git("tag", "-d", "v1.0.0"); git("tag", "v0.9.0"); commit("b: third"); git("tag", "v1.0.0") }, "v0.9.0", []string{"b: third"}},
	} {
		step.do()
		before, got, err := config{source: dir, number: "1.0.0"}.commits()
		if err != nil || before != step.before || !slices.Equal(got, step.want) {
			t.Errorf("%s: %q %q %v", step.rule, before, got, err)
		}
	}
	if _, got, err := (config{source: t.TempDir()}).commits(); err != nil || got != nil {
		t.Errorf("of a source without history: %q %v", got, err)
	}
}

func TestSetVersion(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "charts"), os.DirFS("../charts")); err != nil {
		t.Fatal(err)
	}
	old, err := readVersion("..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "VERSION"), []byte(old+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(config{source: dir}, "9.8.7-rc.1"); err != nil {
		t.Fatal(err)
	}
	if got, err := readVersion(dir); err != nil || got != "9.8.7-rc.1" {
		t.Errorf("VERSION has %q: %v", got, err)
	}
	for _, chart := range charts.Names() {
		before, err := loader.LoadDir("../charts/" + chart)
		if err != nil {
			t.Fatal(err)
		}
		after, err := loader.LoadDir(filepath.Join(dir, "charts", chart))
		if err != nil {
			t.Fatal(err)
		}
		app := before.Metadata.AppVersion
		if before.Metadata.Dependencies == nil { // ours
			app = "9.8.7-rc.1"
		}
		if after.Metadata.Version != "9.8.7-rc.1" || after.Metadata.AppVersion != app {
			t.Errorf("%s is of version %s, its application of %s", chart, after.Metadata.Version, after.Metadata.AppVersion)
		}
	}
	for _, v := range []string{"", "v1.0.0", "1.0", "1.0.0+build", "one"} {
		if v != "" && setVersion(dir, v) == nil {
			t.Errorf("%q is taken for a version", v)
		}
	}
}

func TestRefusals(t *testing.T) {
	c := testConfig(t)
	c.stamp = "v9.9.9"
	if err := run(c, ""); err == nil || !strings.Contains(err.Error(), "the file VERSION has") {
		t.Errorf("programs of another version than charts: %v", err)
	}
	c = testConfig(t)
	if err := os.WriteFile(c.file("mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(c, ""); err == nil || !strings.Contains(err.Error(), "not from an earlier release") {
		t.Errorf("a folder with other files: %v", err)
	}
}

func TestChecksums(t *testing.T) {
	c := testConfig(t)
	if err := clear(c.out); err != nil {
		t.Fatal(err)
	}
	if err := c.licences(); err != nil {
		t.Fatal(err)
	}
	if err := c.checksums(); err != nil {
		t.Fatal(err)
	}
	sums(t, c.out)
	if err := clear(c.out); err != nil {
		t.Errorf("over an earlier release: %v", err)
	}
	if left := tree(t, c.out); len(left) != 1 {
		t.Errorf("an earlier release leaves %d files", len(left))
	}
}

// Who has the public key knows whose release it is, and that nothing was changed.
func TestSignature(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		if os.Getenv("KALYPSO_REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	c := testConfig(t)
	keys := t.TempDir()
	c.key = filepath.Join(keys, "key")
	keygen := func(stdin string, args ...string) error {
		cmd := exec.Command("ssh-keygen", args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		t.Logf("ssh-keygen %s: %v\n%s", strings.Join(args, " "), err, out)
		return err
	}
	if err := keygen("", "-q", "-t", "ed25519", "-N", "", "-f", c.key); err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(c.key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	signers := filepath.Join(keys, "signers")
	if err := os.WriteFile(signers, append([]byte("releases@example.org "), public...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.checksums(); err != nil {
		t.Fatal(err)
	}
	if err := c.signature(); err != nil {
		t.Fatal(err)
	}
	listed, err := os.ReadFile(c.file(sumsFile))
	if err != nil {
		t.Fatal(err)
	}
	verify := []string{"-Y", "verify", "-f", signers, "-I", "releases@example.org", "-n", namespace, "-s", c.file(signatureFile)}
	if err := keygen(string(listed), verify...); err != nil {
		t.Error("what was signed is not verified")
	}
	if keygen(string(listed)+" ", verify...) == nil {
		t.Error("what was changed is verified")
	}
	c.key = filepath.Join(keys, "none")
	if err := run(c, ""); err == nil || !strings.Contains(err.Error(), "key to sign with") {
		t.Errorf("with a key that is not there: %v", err)
	}
}

// sums has sha256sum check a release, wants every file in it, and gives the
// checksums by file.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	check := exec.Command("sha256sum", "--strict", "--quiet", "-c", sumsFile)
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for line := range strings.Lines(string(data)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		listed[name] = sum
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path) // it is below dir
		if err == nil && !e.IsDir() && listed[rel] == "" && rel != sumsFile && rel != signatureFile && rel != marker {
			t.Errorf("there is no checksum of %s", rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return listed
}

// Two clones in different folders give the same bytes. KALYPSO_TEST_RELEASE is an
// architecture of Linux, or "all" platforms.
func TestReleaseTwice(t *testing.T) {
	arch := os.Getenv("KALYPSO_TEST_RELEASE")
	switch arch {
	case "":
		t.Skip("it builds everything twice; make test-release")
	case "all":
		arch = ""
	}
	first, second := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "a-longer/name")
	for _, clone := range [][]string{{"..", first}, {first, second}} { // of one commit, whatever is committed meanwhile
		if out, err := exec.Command("git", append([]string{"clone", "-q"}, clone...)...).CombinedOutput(); err != nil {
			t.Fatalf("git clone: %v\n%s", err, out)
		}
	}
	var releases []map[string]string
	for _, source := range []string{first, second} {
		release := exec.Command("make", "-s", "release", "RELEASEFLAGS=-arch="+arch)
		release.Dir = source
		start := time.Now()
		out, err := release.CombinedOutput()
		if err != nil {
			t.Fatalf("make release: %v\n%s", err, out)
		}
		t.Logf("%s\n%s", time.Since(start).Round(time.Second), out)
		releases = append(releases, sums(t, filepath.Join(source, "bin/release")))
	}
	same(t, releases[0], releases[1])
	number, err := readVersion("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range program.All() {
		for _, platform := range (config{arch: arch}).platforms(p) {
			base := p.Name + "-" + number + "-" + strings.Replace(platform, "/", "-", 1)
			if releases[0][base] == "" || releases[0][base+".spdx.json"] == "" {
				t.Errorf("there is no %s, or no SBOM of it", base)
			}
		}
	}
}
