package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/release/oci"
	"github.com/kalypso-dev/kalypso/release/program"
	"github.com/kalypso-dev/kalypso/release/spdx"
)

// Media types of charts in registries, https://helm.sh/docs/topics/registries/.
const (
	chartConfigType  types.MediaType = "application/vnd.cncf.helm.config.v1+json"
	chartContentType types.MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
)

const chartLicense = "Apache-2.0"

// metadata is what is read of a Chart.yaml.
type metadata struct {
	Name         string
	Version      string
	Description  string
	Dependencies []dependency
}

// dependency is an upstream chart.
type dependency struct {
	Name, Version, Repository string
	packaged                  []byte // nil: it is named only
}

// charts packages all charts, as files and as OCI layouts.
func (c config) charts() error {
	for _, name := range charts.Names() {
		files, err := charts.Open(name)
		if err == nil {
			err = c.chart(name, files)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	fmt.Println("  " + filepath.Join(c.out, "charts"))
	return nil
}

func (c config) chart(name string, files fs.FS) error {
	data, err := fs.ReadFile(files, "Chart.yaml")
	if err != nil {
		return err
	}
	var m metadata
	if err := yaml.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("parse Chart.yaml: %w", err)
	}
	if m.Version != c.number {
		return fmt.Errorf("its version is %s, and the file VERSION has %s: go run ./release -set %s", m.Version, c.number, c.number)
	}
	if c.upstream != "" {
		for i, d := range m.Dependencies {
			path := filepath.Join(c.upstream, d.file())
			if m.Dependencies[i].packaged, err = os.ReadFile(path); err != nil {
				return fmt.Errorf("its upstream chart: %w: kalypsoctl charts pull -d %s", err, c.upstream)
			}
		}
	}
	archive, err := pack(name, files, m.Dependencies, c.created)
	if err != nil {
		return err
	}
	sbom, err := c.chartSBOM(m, archive)
	if err != nil {
		return err
	}
	base := c.file(filepath.Join("charts", name+"-"+m.Version))
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(base+".tgz", archive, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(base+".spdx.json", sbom, 0o644); err != nil {
		return err
	}
	return c.writeLayout(m, data, archive)
}

func (d dependency) file() string { return d.Name + "-" + d.Version + ".tgz" }

// pack is a chart as "helm package" packs it, but for times and owners, which are
// those of no machine.
func pack(name string, files fs.FS, upstream []dependency, created time.Time) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	add := func(path string, data []byte) error {
		h := &tar.Header{Name: name + "/" + path, Mode: 0o644, Size: int64(len(data)), ModTime: created, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	err := fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		return add(path, data)
	})
	for _, d := range upstream {
		if err == nil && d.packaged != nil {
			err = add("charts/"+d.file(), d.packaged)
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return b.Bytes(), nil
}

// chartSBOM names a chart and the upstream charts that it needs. What images a
// stack runs depends on its values: "kalypsoctl images" tells.
func (c config) chartSBOM(m metadata, archive []byte) ([]byte, error) {
	name := m.Name + "-" + m.Version
	d := spdx.New(name, name+"-"+spdx.Sum(archive), "release", c.created)
	own := spdx.Package{ID: "SPDXRef-Chart", Name: m.Name, Version: m.Version, Location: spdx.Source(c.revision),
		License: chartLicense, Purpose: "INSTALL", Checksums: []spdx.Checksum{{Algorithm: "SHA256", Value: spdx.Sum(archive)}}}
	d.Describe(own)
	for _, dep := range m.Dependencies {
		p := spdx.Package{ID: spdx.ID("Chart", dep.Name), Name: dep.Name, Version: dep.Version, Location: dep.Repository, Purpose: "INSTALL",
			References: []spdx.External{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: "pkg:helm/" + dep.Name + "@" + dep.Version + "?repository_url=" + dep.Repository}}}
		how := "DEPENDS_ON"
		if dep.packaged != nil {
			how = "CONTAINS"
			p.Checksums = []spdx.Checksum{{Algorithm: "SHA256", Value: spdx.Sum(dep.packaged)}}
		}
		d.Add(own.ID, how, p)
	}
	return d.JSON()
}

// writeLayout writes a chart as registries hold it. "helm push" would make the
// same, but for the time of the push, which changes its digest.
func (c config) writeLayout(m metadata, chartYAML, archive []byte) error {
	var all map[string]any
	if err := yaml.Unmarshal(chartYAML, &all); err != nil {
		return fmt.Errorf("parse Chart.yaml: %w", err)
	}
	config, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("write the metadata: %w", err)
	}
	path, err := layout.Write(c.file(filepath.Join("charts", "oci", m.Name)), empty.Index)
	if err != nil {
		return err
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Annotations: map[string]string{
		"org.opencontainers.image.title":       m.Name,
		"org.opencontainers.image.description": m.Description,
		"org.opencontainers.image.version":     m.Version,
		"org.opencontainers.image.created":     c.created.Format(time.RFC3339),
		"org.opencontainers.image.source":      "https://" + program.Module,
		"org.opencontainers.image.licenses":    chartLicense,
	}}
	if manifest.Config, err = oci.WriteBlob(path, chartConfigType, config); err != nil {
		return err
	}
	content, err := oci.WriteBlob(path, chartContentType, archive)
	if err != nil {
		return err
	}
	manifest.Layers = []v1.Descriptor{content}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	d, err := oci.WriteBlob(path, types.OCIManifestSchema1, raw)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": m.Version}
	return path.AppendDescriptor(d)
}
