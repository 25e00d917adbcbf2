// Package plan puts components in order: waves, one after another, in which
// everything goes at the same time.
//
// A component's wave follows from what it needs and from nothing else. The
// package does not know what a component is made of, and does nothing.
package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

// Wave is what can go at the same time, in the order of the catalogue.
type Wave []component.Component

// Waves orders components so that each comes after what it needs. A need that
// is not among them is taken to be there already: somebody left it out, and
// knows why.
func Waves(components []component.Component) ([]Wave, error) {
	o := order{byName: map[string]component.Component{}, wave: map[string]int{}}
	for _, c := range components {
		if _, twice := o.byName[c.Name]; twice {
			return nil, fmt.Errorf("order components: %s is there twice", c.Name)
		}
		o.byName[c.Name] = c
	}
	var waves []Wave
	for _, c := range components {
		n, err := o.visit(c.Name, nil)
		if err != nil {
			return nil, fmt.Errorf("order components: %w", err)
		}
		for len(waves) <= n {
			waves = append(waves, nil)
		}
		waves[n] = append(waves[n], c)
	}
	return waves, nil
}

type order struct {
	byName map[string]component.Component
	wave   map[string]int // of those that were visited
}

// visit gives the wave of a component, counted from 0; path is who asks.
func (o *order) visit(name string, path []string) (int, error) {
	if n, ok := o.wave[name]; ok {
		return n, nil
	}
	if i := slices.Index(path, name); i >= 0 {
		return 0, errors.New("each needs the next: " + strings.Join(append(path[i:], name), " → "))
	}
	n := 0
	for _, need := range o.byName[name].Needs {
		if _, there := o.byName[need]; !there {
			continue
		}
		before, err := o.visit(need, append(path, name))
		if err != nil {
			return 0, err
		}
		n = max(n, before+1)
	}
	o.wave[name] = n
	return n, nil
}
