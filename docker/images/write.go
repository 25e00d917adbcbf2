package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kalypso-dev/kalypso/release/oci"
	"github.com/kalypso-dev/kalypso/release/program"
)

const (
	sbomType = "application/spdx+json"
	// refName is what an index.json calls an image.
	refName = "org.opencontainers.image.ref.name"
)

// writeLayout writes the images of a program as an OCI layout: the index of all
// architectures under the tag and, referring to the image of each, its SBOM. It
// gives the digest of the index.
func (c config) writeLayout(p program.Program, images []platformImage) (v1.Hash, error) {
	dir := filepath.Join(c.out, p.Name)
	if _, err := os.Stat(dir); err == nil {
		return v1.Hash{}, fmt.Errorf("%s is there already: delete it first", dir)
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, m := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: m.Image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: m.arch}}})
	}
	index, _ = mutate.Annotations(index, c.labels(p)).(v1.ImageIndex) // an index stays one
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: c.tag})); err != nil {
		return v1.Hash{}, err
	}
	for _, m := range images {
		if err := attach(path, m); err != nil {
			return v1.Hash{}, fmt.Errorf("attach the SBOM: %w", err)
		}
	}
	return index.Digest()
}

// attach writes an SBOM as a manifest whose subject is the image.
func attach(path layout.Path, m platformImage) error {
	subject, err := partial.Descriptor(m.Image)
	if err != nil {
		return err
	}
	manifest := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  sbomType,
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
	}
	if manifest.Config, err = oci.WriteBlob(path, types.OCIEmptyJSON, []byte("{}")); err != nil {
		return err
	}
	sbom, err := oci.WriteBlob(path, sbomType, m.sbom)
	if err != nil {
		return err
	}
	manifest.Layers = []v1.Descriptor{sbom}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	d, err := oci.WriteBlob(path, types.OCIManifestSchema1, raw)
	if err != nil {
		return err
	}
	d.ArtifactType = sbomType
	return path.AppendDescriptor(d)
}

// writeArchive writes the image of one architecture as "docker save" does, which
// "ctr images import" and "docker load" read.
func (c config) writeArchive(p program.Program, m platformImage, path string) error {
	tag, err := name.NewTag(c.repository+"/"+p.Name+":"+c.tag, name.StrictValidation)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, m.Image)
}
