package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kalypso-dev/kalypso/release/program"
)

// folder of the program in its image; it is in PATH.
const folder = "/usr/local/bin/"

// platformImage is the image of one architecture.
type platformImage struct {
	v1.Image
	arch string
	sbom []byte
}

// image makes the image of a program for one architecture: what every program
// needs, then the program.
func (c config) image(p program.Program, arch string) (platformImage, error) {
	out := platformImage{arch: arch}
	path := filepath.Join(c.binaries, "linux-"+arch, p.Name)
	binary, err := os.ReadFile(path)
	if err != nil {
		return out, err
	}
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return out, fmt.Errorf("read the build information of %s: %w", path, err)
	}
	if err := fits(info, arch); err != nil {
		return out, fmt.Errorf("%s: %w", path, err)
	}
	roots, err := certificates()
	if err != nil {
		return out, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, part := range []struct {
		what  string
		files []file
	}{
		{"certificates and /tmp", []file{
			{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: roots},
			{name: "tmp/", mode: 0o777 | fs.ModeSticky},
		}},
		{p.Name, []file{{name: folder[1:] + p.Name, mode: 0o755, data: binary}}},
	} {
		l, err := layer(part.files, c.created)
		if err != nil {
			return out, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: c.created}, CreatedBy: "docker/images: " + part.what}})
		if err != nil {
			return out, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return out, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Created = v1.Time{Time: c.created}
	config.Config = v1.Config{
		User:       p.User,
		Entrypoint: []string{folder + p.Name},
		// HOME is where caches go, and the only folder that anybody may write to.
		Env:        []string{"PATH=" + filepath.Clean(folder), "HOME=/tmp"},
		WorkingDir: "/",
		Labels:     c.labels(p),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return out, err
	}
	out.Image, _ = mutate.Annotations(img, c.labels(p)).(v1.Image) // an image stays one
	if out.sbom, err = c.sbom(p, arch, info, binary); err != nil {
		return out, err
	}
	return out, nil
}

// fits refuses a program that would not start in its image.
func fits(info *debug.BuildInfo, arch string) error {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	switch {
	case settings["GOOS"] != "linux" || settings["GOARCH"] != arch:
		return fmt.Errorf("it is for %s/%s, not for linux/%s", settings["GOOS"], settings["GOARCH"], arch)
	case settings["CGO_ENABLED"] != "0":
		return errors.New("it was built with cgo: the image has no C library")
	}
	return nil
}

// labels are those of the OCI image specification.
func (c config) labels(p program.Program) map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":       p.Name,
		"org.opencontainers.image.description": p.Title,
		"org.opencontainers.image.version":     c.tag,
		"org.opencontainers.image.created":     c.created.Format(time.RFC3339),
		"org.opencontainers.image.source":      "https://" + program.Module,
		"org.opencontainers.image.licenses":    p.Licenses,
	}
	if c.revision != "" {
		labels["org.opencontainers.image.revision"] = c.revision
	}
	return labels
}

// file of a layer; a name that ends in a slash is a folder.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// layer packs files, all of them root's and of the same time.
func layer(files []file, created time.Time) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: int64(f.mode.Perm()), Size: int64(len(f.data)), ModTime: created, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if f.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if len(f.name) > 0 && f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.name, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
