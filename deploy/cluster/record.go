package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Record says that a cluster was made by this program, and how. It is written
// before the first command and deleted after the last: what has none is not
// ours to touch.
type Record struct {
	Schema    string    `json:"schema"`
	Name      string    `json:"name"`
	Driver    string    `json:"driver"`
	Context   string    `json:"context"`
	Created   time.Time `json:"created"`
	Whole     bool      `json:"whole"` // false while it is being made, and after an attempt that nobody could take back
	CPUs      int       `json:"cpus,omitempty"`
	MemoryGiB int       `json:"memory_gib,omitempty"`
	DiskGiB   int       `json:"disk_gib,omitempty"`
}

const recordSchema = "kalypso.cluster-record/v1"

// Spec is what was wanted.
func (r Record) Spec() Spec {
	return Spec{Name: r.Name, CPUs: r.CPUs, MemoryGiB: r.MemoryGiB, DiskGiB: r.DiskGiB}
}

// records are files of a folder, one for each cluster.
type records string

func (dir records) file(name string) string { return filepath.Join(string(dir), name+".json") }

// read gives nil where there is no record.
func (dir records) read(name string) (*Record, error) {
	data, err := os.ReadFile(dir.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of cluster %s: %w", name, err)
	}
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read the record %s: %w", dir.file(name), err)
	}
	return r, nil
}

// all are sorted by name.
func (dir records) all() ([]Record, error) {
	entries, err := os.ReadDir(string(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the records of clusters: %w", err)
	}
	var all []Record
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		r, err := dir.read(name)
		if err != nil {
			return nil, err
		}
		if r != nil {
			all = append(all, *r)
		}
	}
	return all, nil
}

// write leaves the old record or the new one, never half of one.
func (dir records) write(r Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the record of cluster %s: %w", r.Name, err)
	}
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		return fmt.Errorf("write the record of cluster %s: %w", r.Name, err)
	}
	temp := dir.file(r.Name) + ".new"
	if err := os.WriteFile(temp, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the record of cluster %s: %w", r.Name, err)
	}
	if err := os.Rename(temp, dir.file(r.Name)); err != nil {
		return fmt.Errorf("write the record of cluster %s: %w", r.Name, err)
	}
	return nil
}

func (dir records) remove(name string) error {
	if err := os.Remove(dir.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the record of cluster %s: %w", name, err)
	}
	return nil
}
