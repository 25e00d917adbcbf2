package helm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// repository serves files, and counts what is asked for.
type repository struct {
	files map[string][]byte
	asked []string
	Dependency
}

func (r *repository) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.asked = append(r.asked, req.URL.Path)
	data, ok := r.files[req.URL.Path]
	if !ok {
		http.NotFound(w, req)
		return
	}
	_, _ = w.Write(data)
}

// serve starts a repository that has upstream, by an address that is relative
// to the index.
func serve(t *testing.T) *repository {
	t.Helper()
	archive, err := os.ReadFile(pack(t, upstream(), t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	r := &repository{}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	r.Dependency = Dependency{"web", "1.2.3", s.URL + "/charts"}
	r.files = map[string][]byte{
		"/charts/files/web-1.2.3.tgz": archive,
		"/charts/index.yaml":          index(digest(archive)),
	}
	return r
}

func index(digest string) []byte {
	return fmt.Appendf(nil, "apiVersion: v1\nentries:\n  web:\n  - {apiVersion: v2, name: web, version: 1.2.3, urls: [files/web-1.2.3.tgz], digest: %q}\n", digest)
}

func pull(ctx context.Context, r *repository, dir string) (got []Pulled, err error) {
	err = Pull(ctx, []Dependency{r.Dependency}, dir, func(p Pulled) { got = append(got, p) })
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	return got, err
}

func TestPull(t *testing.T) {
	r, dir := serve(t), filepath.Join(t.TempDir(), "new", "folder")
	first, err := pull(t.Context(), r, dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(first) != 1 || first[0].Kept || first[0].SHA256 != digest(r.files["/charts/files/web-1.2.3.tgz"]) {
		t.Errorf("the first time: %+v", first)
	}
	if diff := cmp.Diff(r.asked, []string{"/charts/index.yaml", "/charts/files/web-1.2.3.tgz"}); diff != "" {
		t.Errorf("the first time asks for the index and the chart (-got +want):\n%s", diff)
	}
	if _, err := Render(open(t, wrapper()), archives(t, dir), here, nil); err != nil {
		t.Errorf("what was pulled does not render: %v", err)
	}
	r.asked = nil
	second, err := pull(t.Context(), r, dir)
	if err != nil || len(second) != 1 || !second[0].Kept || len(r.asked) != 0 {
		t.Errorf("the second time: %+v, error %v, asked for %v", second, err, r.asked)
	}
}

func TestPullRefuses(t *testing.T) {
	other := []byte("another file")
	tests := []struct {
		name   string
		before bool // pull once, before things change
		change func(r *repository, dir string) error
		want   string
	}{
		{"a chart that changed since it was pinned, though its index agrees", true, func(r *repository, dir string) error {
			r.files["/charts/files/web-1.2.3.tgz"], r.files["/charts/index.yaml"] = other, index(digest(other))
			return os.Remove(filepath.Join(dir, "web-1.2.3.tgz"))
		}, "web 1.2.3 of URL/charts is not the chart that was pinned: its SHA-256 is "},
		{"a file that changed in the folder", true, func(_ *repository, dir string) error {
			return os.WriteFile(filepath.Join(dir, "web-1.2.3.tgz"), other, 0o644)
		}, "DIR/web-1.2.3.tgz is not the chart that was pinned: its SHA-256 is "},
		{"a chart that its index does not agree with", false, func(r *repository, _ string) error {
			r.files["/charts/files/web-1.2.3.tgz"] = other
			return nil
		}, "URL/charts/files/web-1.2.3.tgz is not the chart that its repository tells of: its SHA-256 is "},
		{"a chart that the repository does not have", false, func(r *repository, _ string) error {
			r.Version = "1.2.4"
			return nil
		}, "chart web 1.2.4 is not in URL/charts: "},
		{"a file that the index promises and the server does not have", false, func(r *repository, _ string) error {
			delete(r.files, "/charts/files/web-1.2.3.tgz")
			return nil
		}, "cannot download URL/charts/files/web-1.2.3.tgz: the answer is 404 Not Found"},
		{"a page in place of an index", false, func(r *repository, _ string) error {
			r.files["/charts/index.yaml"] = []byte("<html>sign in</html>")
			return nil
		}, "URL/charts/index.yaml is not the index of a chart repository: "},
		{"a server that is not there", false, func(r *repository, _ string) error {
			r.Repository = "http://127.0.0.1:1"
			return nil
		}, "cannot download http://127.0.0.1:1/index.yaml: dial tcp 127.0.0.1:1: connect: connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, dir := serve(t), t.TempDir()
			url := strings.TrimSuffix(r.Repository, "/charts")
			if tt.before {
				if _, err := pull(t.Context(), r, dir); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.change(r, dir); err != nil {
				t.Fatal(err)
			}
			_, err := pull(t.Context(), r, dir)
			var fault *profiler.Fault
			if !errors.As(err, &fault) || fault.Fix == "" {
				t.Fatalf("error %v is for nobody", err)
			}
			if got := strings.NewReplacer(dir, "DIR", url, "URL").Replace(err.Error()); !strings.HasPrefix(got, tt.want) {
				t.Errorf("error %s, want %s", got, tt.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "web-1.2.3.tgz")); err == nil && !tt.before {
				t.Error("what was refused is in the folder")
			}
		})
	}
}

func TestPullIsInterrupted(t *testing.T) {
	r := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pull(ctx, r, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
