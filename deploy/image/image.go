// Package image brings container images into one file, for nodes that have no
// way to a registry.
//
// The file is what "docker save" writes, which containerd's ctr, K3s, kind,
// Podman and Docker read. The package does not know which images a stack
// consists of, and changes nothing in them: digests stay what they are.
package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Saved is an image that is in the file, or will be.
type Saved struct {
	Image  string
	Digest string // of the image of the platform
	Bytes  int64  // of its layers as they are sent
}

// Save writes images for one platform, such as "linux/arm64", into a file, which
// appears whole or not at all. found is told of each image when its registry has
// answered, before the first layer is fetched: what is missing is known then.
// Credentials are those of Docker and Podman.
func Save(ctx context.Context, path string, images []string, platform string, found func(Saved)) error {
	if err := CheckPlatform(platform); err != nil {
		return err
	}
	p, err := v1.ParsePlatform(platform)
	if err != nil {
		return fmt.Errorf("read the platform %s: %w", platform, err)
	}
	all := map[name.Reference]v1.Image{}
	for _, image := range images {
		ref, err := name.ParseReference(image)
		if err != nil {
			return &profiler.Fault{What: image + " is not the name of an image", Why: err, Fix: "kalypsoctl config show --origin     prints the values and where each came from"}
		}
		img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(*p), remote.WithAuthFromKeychain(authn.DefaultKeychain))
		if err != nil {
			return pullFault(ctx, image, platform, err)
		}
		s, err := describe(image, img)
		if err != nil {
			return pullFault(ctx, image, platform, err)
		}
		found(s)
		all[tagged(image, ref)] = img
	}
	return write(ctx, path, platform, all)
}

// CheckPlatform says whether a text can be a platform.
func CheckPlatform(platform string) error {
	p, err := v1.ParsePlatform(platform)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return &profiler.Fault{What: fmt.Sprintf("there is no platform %q", platform), Fix: "a platform is an operating system and an architecture: linux/amd64, linux/arm64"}
	}
	return nil
}

// tagged is the name that an image has in the file: one that is named by a tag and
// a digest is known by its tag there.
func tagged(image string, ref name.Reference) name.Reference {
	if _, byDigest := ref.(name.Digest); byDigest {
		if tag, err := name.NewTag(strings.SplitN(image, "@", 2)[0]); err == nil {
			return tag
		}
	}
	return ref
}

func describe(image string, img v1.Image) (Saved, error) {
	s := Saved{Image: image}
	digest, err := img.Digest()
	if err != nil {
		return s, err
	}
	s.Digest = digest.String()
	manifest, err := img.Manifest()
	if err != nil {
		return s, err
	}
	for _, layer := range manifest.Layers {
		s.Bytes += layer.Size
	}
	return s, nil
}

// write fetches layers as it writes.
func write(ctx context.Context, path, platform string, all map[name.Reference]v1.Image) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".kalypso-images-*")
	if err != nil {
		return writeFault(path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone once it is renamed
	disk := &disk{file: f}
	err = tarball.MultiRefWrite(all, disk)
	if err != nil && disk.err == nil { // what was to be written did not come
		return errors.Join(pullFault(ctx, "the layers of the images", platform, err), f.Close())
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return writeFault(path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return writeFault(path, err)
	}
	return nil
}

// disk is a file that remembers what went wrong with it.
type disk struct {
	file *os.File
	err  error
}

// Write implements io.Writer.
func (d *disk) Write(p []byte) (int, error) {
	n, err := d.file.Write(p)
	d.err = err
	return n, err
}

func writeFault(path string, err error) error {
	return &profiler.Fault{What: "cannot write " + path, Why: err, Fix: "look whether its folder is there and has room; then do this again"}
}

// pullFault says why an image cannot be had.
func pullFault(ctx context.Context, image, platform string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f := &profiler.Fault{What: "cannot pull " + image, Why: err, Fix: "is there a way to its registry (HTTPS_PROXY)?"}
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		f.Why, f.Fix = errors.New("its registry does not have it"), "kalypsoctl config show --origin     prints the values and where each came from"
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		f.Why, f.Fix = fmt.Errorf("its registry refuses it (%d)", answer.StatusCode), "log in (docker login, podman login); a registry may also call what it does not have forbidden"
	case errors.As(err, &answer):
		f.Why = fmt.Errorf("its registry answers %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
		f.Fix = "try again later"
	case strings.Contains(err.Error(), "no child with platform"):
		f.Why, f.Fix = fmt.Errorf("it is not made for %s", platform), "--platform names another"
	}
	return f
}
