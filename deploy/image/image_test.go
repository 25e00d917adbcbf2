package image

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kalypso-dev/kalypso/profiler"
)

// pushed puts an image for two platforms into a registry and gives their digests.
func pushed(t *testing.T, image string) map[string]string {
	t.Helper()
	ref, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]string{}
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(1024, 2)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests[arch] = digest.String()
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	return digests
}

func newRegistry(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestSave(t *testing.T) {
	host := newRegistry(t)
	one, two := host+"/a/one:1", host+"/b/two:2"
	digests := pushed(t, one)
	pushed(t, two)
	file := filepath.Join(t.TempDir(), "images.tar")
	var found []Saved
	if err := Save(t.Context(), file, []string{one, two}, "linux/arm64", func(s Saved) { found = append(found, s) }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].Image != one || found[0].Digest != digests["arm64"] || found[0].Bytes < 2048 {
		t.Errorf("found %+v, want the one for arm64 with %s", found, digests["arm64"])
	}
	for _, image := range []string{one, two} {
		tag, err := name.NewTag(image)
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(file, &tag)
		if err != nil {
			t.Fatalf("%s is not in the file: %v", image, err)
		}
		if layers, err := img.Layers(); err != nil || len(layers) != 2 {
			t.Errorf("%s has %d layers, %v", image, len(layers), err)
		}
	}
}

// layerOf gives the digest of a layer of an image.
func layerOf(t *testing.T, image, digest string) string {
	t.Helper()
	ref, err := name.NewDigest(strings.TrimSuffix(image, ":1") + "@" + digest)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return layer.String()
}

func TestSaveRefuses(t *testing.T) {
	lost := ""
	host := newRegistry(t)
	there := host + "/a/one:1"
	pushed(t, there)
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer broken.Close()
	// One that has lost what its lists name.
	holes := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	losing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && lost != "" && strings.HasSuffix(r.URL.Path, lost) {
			w.WriteHeader(http.StatusInsufficientStorage)
			return
		}
		holes.ServeHTTP(w, r)
	}))
	defer losing.Close()
	half := strings.TrimPrefix(losing.URL, "http://") + "/a/half:1"
	lost = layerOf(t, half, pushed(t, half)["amd64"])
	dir := t.TempDir()
	tests := []struct {
		name, image, platform, path string
		what, cause, fix            string // parts of them
	}{
		{"an image that is not there", host + "/a/none:1", "linux/amd64", "x", "cannot pull " + host + "/a/none:1", "does not have it", "config show --origin"},
		{"a platform that it is not made for", there, "linux/s390x", "x", "cannot pull", "not made for linux/s390x", "--platform"},
		{"no platform", there, "arm", "x", `there is no platform "arm"`, "", "linux/amd64"},
		{"no name of an image", "A B", "linux/amd64", "x", "A B is not the name", "", "config show"},
		{"nobody answers", "127.0.0.1:1/a/one:1", "linux/amd64", "x", "cannot pull", "connection refused", "HTTPS_PROXY"},
		{"a registry that is something else", strings.TrimPrefix(broken.URL, "http://") + "/a:1", "linux/amd64", "x", "cannot pull", "418", "try again"},
		{"a registry that has no layers", half, "linux/amd64", "x", "cannot pull the layers", "507", "try again"},
		{"a folder that is not there", there, "linux/amd64", "none/x", "cannot write", "no such file", "its folder"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Save(t.Context(), filepath.Join(dir, tt.path), []string{tt.image}, tt.platform, func(Saved) {})
			var fault *profiler.Fault
			if !errors.As(err, &fault) {
				t.Fatalf("no fault: %v", err)
			}
			cause := ""
			if fault.Why != nil {
				cause = fault.Why.Error()
			}
			for _, part := range [][2]string{{fault.What, tt.what}, {cause, tt.cause}, {fault.Fix, tt.fix}} {
				if !strings.Contains(part[0], part[1]) {
					t.Errorf("%q does not say %q", part[0], part[1])
				}
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Save(ctx, filepath.Join(dir, "x"), []string{there}, "linux/amd64", func(Saved) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
