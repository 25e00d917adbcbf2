package install

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/test/cluster"
)

// unpacked are the files of a sysdump by name, without the folder; first is the
// one that comes first.
func unpacked(t *testing.T, file string) (first string, files map[string]string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return first, files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		if first == "" {
			first = name
		}
		files[name] = string(text)
	}
}

// credentials are the values that install made up, and what Helm has in its
// Secrets, in plain and as the API has them.
func (b *bench) credentials(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, c := range component.All() {
		list, err := b.Client.CoreV1().Secrets(c.Namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			for _, v := range s.Data {
				out = append(out, string(v), base64.StdEncoding.EncodeToString(v))
			}
		}
	}
	return out
}

func TestSysdumpOfABrokenInstall(t *testing.T) {
	b := newBench(t, "sysdump")
	const typed = "typed-by-hand-4711"
	settings := "pyroscope:\n  pyroscope: {pyroscope: {podAnnotations: " + outcome(cluster.ImageNotFound) + ", extraEnvVars: {DB_PASSWORD: " + typed + "}}}\n"
	b.run(t, failed, settings, "install", "--yes", "--profile", "small", "pyroscope")
	secrets := b.credentials(t)
	if len(secrets) < 8 {
		t.Fatalf("only %d values in Secrets", len(secrets))
	}
	// Somebody wrote a credential where it does not belong.
	s, err := b.Client.CoreV1().Secrets("pyroscope").Get(t.Context(), "kalypso-s3", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.kubectl(t, "", "-n", "pyroscope", "create", "configmap", "notes", "--from-literal=note=use "+string(s.Data["AWS_SECRET_ACCESS_KEY"])+" here")

	file := filepath.Join(t.TempDir(), "dump.tar.gz")
	holds(t, b.run(t, done, "", "sysdump", "-o", file), "wrong     pyroscope is ", "SUMMARY.md")
	first, files := unpacked(t, file)
	if first != "SUMMARY.md" {
		t.Errorf("%s comes first", first)
	}
	title, rest, _ := strings.Cut(files["SUMMARY.md"], "\n")
	if !strings.HasSuffix(title, ": 1 thing wrong") || !strings.HasPrefix(strings.TrimSpace(rest), "1. **pyroscope is broken") || !strings.Contains(rest, "pyroscope-0: ") {
		t.Errorf("the summary begins with:\n%s\n%.500s", title, rest)
	}
	for _, name := range []string{"versions.txt", "plan.txt", "releases.txt", "values/pyroscope.yaml", "events/pyroscope.txt", "objects/pyroscope/statefulsets.apps.yaml", "objects/minio/pods.yaml", "objects/pyroscope/secrets-names.txt"} {
		if files[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
	holds(t, files["objects/pyroscope/configmaps.yaml"], "use (redacted) here")
	holds(t, files["values/pyroscope.yaml"], "DB_PASSWORD: (redacted)")
	holds(t, files["objects/pyroscope/secrets-names.txt"], "kalypso-s3")
	for name, text := range files {
		for _, secret := range append(secrets, typed) {
			if strings.Contains(text, secret) {
				t.Errorf("%s has a secret in it", name)
			}
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", st.Mode(), err)
	}

	only := filepath.Join(t.TempDir(), "dump.tar.gz")
	b.run(t, done, "", "sysdump", "--component", "minio", "-o", only)
	if _, files := unpacked(t, only); files["objects/minio/pods.yaml"] == "" || files["objects/pyroscope/pods.yaml"] != "" {
		t.Error("--component minio has other components, or not minio")
	}
}

// Who may read nothing is told so, once, by the exit code too.
func TestSysdumpWithoutRights(t *testing.T) {
	b := newBench(t, "blind")
	file, err := b.KubeconfigFor(cluster.User{Name: "jane"})
	if err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(t.TempDir(), "dump.tar.gz")
	text := b.as(file).run(t, forbidden, "", "sysdump", "-o", dump)
	holds(t, text, "and ", "you may not read it (403 Forbidden)", "error: nothing of the stack could be read", "fix:   ask who runs the cluster for the ClusterRole view")
	if n := strings.Count(text, "403 Forbidden"); n != 1 {
		t.Errorf("the same reason %d times:\n%s", n, text)
	}
	holds(t, func() string { _, files := unpacked(t, dump); return files["SUMMARY.md"] }(), "nothing could be read")
}
