package config

import "slices"

// Change is a setting that has another value than before.
type Change struct {
	Name     string
	Old, New string // as they are written in a flag
	Origin   Origin // of the new value
	Restart  bool   // it holds only once the agent is restarted
}

// Changes gives the settings that differ, in the table's order.
func Changes(before, after *Config) []Change {
	var changes []Change
	table := settings()
	for i := range table {
		s := &table[i]
		if !slices.Equal(s.words(before), s.words(after)) {
			changes = append(changes, Change{s.name, s.join(before), s.join(after), after.Origin(s.name), !s.live})
		}
	}
	return changes
}

// Running gives the settings that hold after a reload without a restart: those
// that can change as they are in after, all others as in before.
func Running(before, after *Config) *Config {
	table := settings()
	c := defaults(table)
	for i := range table {
		s, from := &table[i], before
		if s.live {
			from = after
		}
		if _, wrong := s.set(c, s.words(from)); wrong == nil { // it was set before
			c.origins[s.name] = from.Origin(s.name)
		}
	}
	return c
}
