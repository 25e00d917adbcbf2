package install

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
)

// upgradeFrom names a commit to upgrade from; without it that is the last tag of
// another version.
const upgradeFrom = "KALYPSO_UPGRADE_FROM"

// What the version before installed is upgraded by this one: volumes and
// credentials stay, and nothing is left to change.
func TestUpgradeFromTheVersionBefore(t *testing.T) {
	if os.Getenv("KALYPSO_TEST_CLUSTER") == "" {
		t.Skip("it needs a cluster; make test-cluster")
	}
	before := versionBefore(t)
	old := buildAt(t, before)
	b := newBench(t, "upgrade")
	was := *b
	was.charts = standInsFor(t, old, b.charts)
	run := exec.Command(old, "install", "--yes", "--no-verify", "--profile", "small", "--set", "loki.loki.gateway.replicas=2")
	run.Dir = t.TempDir()
	run.Env = append(os.Environ(), "HOME="+run.Dir, "KUBECONFIG="+was.kubeconfig, "KALYPSO_CHARTS="+was.charts)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%s does not install: %v\n%s", before, err, out)
	}
	const kept = `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid} {.data}{"\n"}{end}`
	volumes := b.kubectl(t, "", "get", "pvc", "-A", "-o", kept)
	secrets := b.kubectl(t, "", "get", "secret", "-A", "-l", "app.kubernetes.io/managed-by=kalypsoctl,owner!=helm", "-o", kept)
	if volumes == "" || secrets == "" {
		t.Fatal("the version before has made no volume, or no Secret")
	}

	t.Log(b.run(t, done, "", "upgrade", "--yes"))
	for name, now := range b.releases(t) {
		if !strings.HasPrefix(now, "deployed ") {
			t.Errorf("release %s is %s", name, now)
		}
	}
	if unready := b.unready(t); len(unready) > 0 {
		t.Errorf("not ready: %v", unready)
	}
	if now := b.kubectl(t, "", "get", "pvc", "-A", "-o", kept); now != volumes {
		t.Errorf("volumes were\n%s\nand are\n%s", volumes, now)
	}
	if now := b.kubectl(t, "", "get", "secret", "-A", "-l", "app.kubernetes.io/managed-by=kalypsoctl,owner!=helm", "-o", kept); now != secrets {
		t.Errorf("Secrets were\n%s\nand are\n%s", secrets, now) // random, and of this test
	}
	if got := b.kubectl(t, "", "-n", "loki", "get", "deployment", "loki-gateway", "-o", "jsonpath={.spec.replicas}"); got != "2" {
		t.Errorf("a value that was given is forgotten: the gateway has %s replicas", got)
	}
	b.run(t, done, "", "diff", "--exit-code")
	holds(t, b.run(t, done, "", "version", "-o", "json"), `"skew": []`)
}

// versionBefore is the commit to upgrade from.
func versionBefore(t *testing.T) string {
	t.Helper()
	if commit := os.Getenv(upgradeFrom); commit != "" {
		return commit
	}
	version, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	tag, err := exec.Command("git", "describe", "--tags", "--abbrev=0", "--match", "v*", "--exclude", "v"+strings.TrimSpace(string(version))).Output()
	if err != nil {
		t.Skip("there is no version before this one; " + upgradeFrom + " names a commit to upgrade from")
	}
	return strings.TrimSpace(string(tag))
}

// buildAt builds the kalypsoctl of a commit.
func buildAt(t *testing.T, commit string) string {
	t.Helper()
	source, out := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "kalypsoctl")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", out, "./cmd/kalypsoctl")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, c := range []*exec.Cmd{
		exec.Command("git", "clone", "-q", "--no-checkout", "../..", source), exec.Command("git", "-C", source, "checkout", "-q", commit), build,
	} {
		if text, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, text)
		}
	}
	return out
}

// standInsFor gives the packaged charts that an older kalypsoctl asks for: those of
// now, in the versions of then.
func standInsFor(t *testing.T, kalypsoctl, now string) string {
	t.Helper()
	list := exec.Command(kalypsoctl, "charts", "list", "-o", "json")
	list.Env = append(os.Environ(), "HOME="+t.TempDir())
	raw, err := list.Output()
	if err != nil {
		t.Fatalf("charts list: %v", err)
	}
	var then struct {
		Charts []struct{ Name, Version string }
	}
	if err := json.Unmarshal(raw, &then); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range then.Charts {
		archives, err := filepath.Glob(filepath.Join(now, c.Name+"-*.tgz"))
		if err != nil || len(archives) == 0 {
			t.Fatalf("there is no chart %s: %v", c.Name, err)
		}
		chart, err := loader.LoadFile(archives[0])
		if err != nil {
			t.Fatal(err)
		}
		chart.Metadata.Version = c.Version
		if _, err := chartutil.Save(chart, dir); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
