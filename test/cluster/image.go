package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Load makes an image of one binary, which is its entry point, and gives it to
// every real node. A binary that is not static needs files, its loader and
// libraries, which have the paths in the image that they have on this machine.
// Pods must not ask for it to be pulled: give it a tag other than latest, or
// imagePullPolicy Never.
func (c *Cluster) Load(ctx context.Context, image, binary string, files ...string) error {
	for _, p := range c.nodes {
		if err := p.load(ctx, image, binary, files...); err != nil {
			return err
		}
	}
	return nil
}

// LoadArchive gives an image in a file, as "docker save" writes it, to every real
// node, under the name that it has in there.
func (c *Cluster) LoadArchive(ctx context.Context, path string) error {
	for _, p := range c.nodes {
		data, err := os.Open(path)
		if err != nil {
			return err
		}
		err = p.importImage(ctx, data)
		_ = data.Close() // only read from
		if err != nil {
			return fmt.Errorf("give %s the image %s: %w", p.name, path, err)
		}
	}
	return nil
}

func (p *place) load(ctx context.Context, image, binary string, files ...string) error {
	var archive bytes.Buffer
	if err := writeImage(&archive, image, binary, files); err != nil {
		return fmt.Errorf("make the image %s: %w", image, err)
	}
	if err := p.importImage(ctx, &archive); err != nil {
		return fmt.Errorf("give %s the image %s: %w", p.name, image, err)
	}
	return nil
}

func (p *place) importImage(ctx context.Context, archive io.Reader) error {
	line := p.enter("ctr", "--namespace", "k8s.io", "images", "import", "-")
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Stdin = archive
	if _, err := cmd.Output(); err != nil {
		return fmt.Errorf("%w: %s", err, stderrOf(err))
	}
	return nil
}

// writeImage writes what "docker save" would: one layer with a /tmp, the binary
// in the root, and files where they are on this machine.
func writeImage(out io.Writer, image, binary string, files []string) error {
	name := filepath.Base(binary)
	entries := []entry{{"tmp/", 0o1777, nil}}
	for i, from := range append([]string{binary}, files...) {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to := name
		if i > 0 {
			to = strings.TrimPrefix(from, "/")
		}
		entries = append(entries, entry{to, 0o755, data})
	}
	layer, err := archive(entries...)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + name}, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	all, err := archive(entry{configName, 0o644, config}, entry{"layer.tar", 0o644, layer}, entry{"manifest.json", 0o644, manifest})
	if err != nil {
		return err
	}
	_, err = out.Write(all)
	return err
}

// entry is a file of an archive, or a folder if its name ends in a slash.
type entry struct {
	name string
	mode int64
	data []byte
}

func archive(entries ...entry) ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buffer.Bytes(), err
}
