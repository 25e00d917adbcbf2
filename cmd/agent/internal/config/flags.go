package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// configFlag names the settings' file. It is no setting itself: a file cannot
// name another.
const configFlag = "config"

// Flags adds a flag for each setting, and --config. They only keep what was
// typed; Load says what is wrong with it, as it does of files and variables.
func Flags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.Var(&flagValue{word: "FILE"}, configFlag, "YAML `FILE` of settings; "+envName(configFlag)+" does the same")
	table := settings()
	for i := range table {
		s := &table[i]
		v := &flagValue{word: s.word, many: s.shape != scalar, texts: []string{s.fallback}}
		f := flags.VarPF(v, s.name, "", s.help)
		if s.yaml == tagBool {
			f.NoOptDefVal = "true"
		}
	}
}

// flagValue is what was typed for a flag.
type flagValue struct {
	word  string
	many  bool
	given bool
	texts []string
}

// Set implements pflag.Value. What is typed again is added to a list, and
// replaces any other value.
func (v *flagValue) Set(text string) error {
	if !v.given || !v.many {
		v.texts = nil
	}
	v.texts, v.given = append(v.texts, text), true
	return nil
}

// String implements pflag.Value.
func (v *flagValue) String() string { return strings.Join(v.texts, ",") }

// Type implements pflag.Value: the word for a value in --help.
func (v *flagValue) Type() string {
	if v.word == "" {
		return "bool"
	}
	return v.word
}

// typed gives what was typed for a flag, and whether it was typed at all.
func typed(flags *pflag.FlagSet, name string) (string, bool) {
	f := flags.Lookup(name)
	if f == nil || !f.Changed {
		return "", false
	}
	return f.Value.String(), true
}
