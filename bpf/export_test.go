package bpf

import "github.com/cilium/ebpf"

// Maps gives the tables and maps that tests look into.
func (k *Kernel) Maps() map[string]*ebpf.Map {
	m := &k.objs.kalypsoMaps
	return map[string]*ebpf.Map{
		"mappings": m.Mappings, "executables": m.Executables, "pages": m.Pages, "rows": m.Rows, "rules": m.Rules,
		"processes": m.Processes, "targets": m.Targets, "verdicts": m.Verdicts, "counts": m.Counts,
	}
}

// FollowEvery is how often a Sideband looks at the list of CPUs, and a bit.
const FollowEvery = followEvery + followEvery/5

// LoadError is loadError.
func LoadError(err error) error { return loadError(err) }
