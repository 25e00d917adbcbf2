package bpf

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Subsystem is one of cgroup version 1, by whose hierarchy cgroups are told apart
// where both versions are mounted.
type Subsystem uint8

// The subsystems that every container is in.
const (
	NoSubsystem Subsystem = iota
	CPU
	Memory
	PIDs
)

// Cgroup is a cgroup as the kernel knows it: struct klp_cgroup.
type Cgroup struct {
	ID  uint64 // inode number of its directory
	Old bool   // it is one of version 1, in the hierarchy of Config.Subsystem
}

// Verdict says what is done with the samples of a cgroup. The zero value leaves
// out all of those of its own processes.
type Verdict struct {
	Share float64 // that is taken, by chance: from 0 to 1
	Below bool    // it holds for the cgroups below too, but for those with one of their own
}

// Key and value of the map, as in contract.h.
type (
	cgroupKey struct {
		ID        uint64
		Hierarchy uint32
		_         uint32
	}
	verdictValue struct{ Share, Flags uint32 }
)

// ShareAll is the share in a sample's record that says that all such are taken; any
// other is one of 2^32.
const ShareAll = math.MaxUint32

const verdictBelow = 1

// shareValue is a share as the kernel side has it.
func shareValue(share float64) uint32 {
	if share >= 1 {
		return ShareAll
	}
	return uint32(min(max(share, 0)*(1<<32), ShareAll-1))
}

func (c Cgroup) key() (k cgroupKey) {
	k.ID = c.ID
	if c.Old {
		k.Hierarchy = 1
	}
	return k
}

func (v Verdict) value() verdictValue {
	value := verdictValue{Share: shareValue(v.Share)}
	if v.Below {
		value.Flags = verdictBelow
	}
	return value
}

// ErrVerdictsFull says that no more cgroups fit in the table.
var ErrVerdictsFull = errors.New("the table of cgroups is full")

// SetVerdict says what is done with the samples of a cgroup from now on. It has
// no effect while Select has not named its hierarchy.
func (k *Kernel) SetVerdict(c Cgroup, v Verdict) error {
	err := k.objs.Verdicts.Put(c.key(), v.value())
	if errors.Is(err, unix.E2BIG) {
		return ErrVerdictsFull
	}
	if err != nil {
		return fmt.Errorf("set what is sampled of cgroup %d: %w", c.ID, err)
	}
	return nil
}

// DeleteVerdict forgets a cgroup: what is above it decides, and else its samples
// are taken.
func (k *Kernel) DeleteVerdict(c Cgroup) error {
	if err := k.objs.Verdicts.Delete(c.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget cgroup %d: %w", c.ID, err)
	}
	return nil
}

// Select says in which hierarchies there are verdicts, and which share is taken of
// samples that none is on. Where there are none and that is all of them, samples
// cost nothing more.
func (k *Kernel) Select(unified, old bool, share float64) error {
	var bits uint32
	if unified {
		bits = 1
	}
	if old {
		bits |= 2
	}
	rest := shareValue(share)
	if rest != ShareAll {
		bits |= 4
	}
	return errors.Join(k.objs.KlpShare.Set(rest), k.objs.KlpSelecting.Set(bits))
}
