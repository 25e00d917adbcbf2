package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Load gives the settings that hold: those of the file, over them the
// environment's, over them the flags'. An error is a profiler.Fault.
func Load(flags *pflag.FlagSet, environ []string) (*Config, error) {
	c, err := Read(flags, environ)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Read is Load without Validate: each setting is right by itself.
func Read(flags *pflag.FlagSet, environ []string) (*Config, error) {
	table := settings()
	c := defaults(table)
	path, variables, err := environment(table, environ)
	if err != nil {
		return nil, err
	}
	if given, ok := typed(flags, configFlag); ok {
		path = given
	}
	if path != "" {
		if err := readFile(c, table, path); err != nil {
			return nil, err
		}
	}
	for i := range table {
		s := &table[i]
		if text, ok := variables[s.name]; ok {
			if err := c.take(s, text, Origin{FromEnvironment, envName(s.name)}); err != nil {
				return nil, err
			}
		}
		if text, ok := typed(flags, s.name); ok {
			if err := c.take(s, text, Origin{FromFlag, "--" + s.name}); err != nil {
				return nil, err
			}
		}
	}
	c.derive()
	return c, nil
}

// take sets a setting to what a flag or a variable holds.
func (c *Config) take(s *setting, text string, from Origin) error {
	words := s.split(text)
	i, wrong := s.set(c, words)
	if wrong != nil {
		if i < len(words) {
			text = words[i]
		}
		return s.fault(wrong, from.Place, text, func(value string) string {
			if from.Source == FromEnvironment || s.yaml == tagBool {
				return from.Place + "=" + value
			}
			return from.Place + " " + value
		})
	}
	c.origins[s.name] = from
	return nil
}

// shownLimit is how much of a value a message repeats.
const shownLimit = 60

// secretMarks are in URLs with a password or a token, and in little else that
// is a setting.
const secretMarks = "@?"

// quoted is a value as a message repeats it. What may hold a secret is not
// repeated: it has no business in a setting, and less in a log.
func quoted(value string) string {
	if strings.ContainsAny(value, secretMarks) {
		return `"…"`
	}
	if len(value) > shownLimit {
		value = strings.ToValidUTF8(value[:shownLimit], "") + "…"
	}
	return strconv.Quote(value)
}

// fault says that a place cannot hold a value. spell writes another value the
// way it would stand in that place.
func (s *setting) fault(wrong *wrong, place, value string, spell func(value string) string) error {
	f := &profiler.Fault{What: place + " cannot be " + quoted(value), Why: wrong.why}
	switch {
	case wrong.better != "":
		f.Fix = spell(wrong.better)
	case s.fallback != "":
		f.Fix = spell(s.fallback) + "     is the default"
	case s.word != "":
		f.Fix = spell(s.word)
	default:
		f.Fix = spell("true") + " or " + spell("false")
	}
	return f
}

// envPrefix begins the name of every variable that is a setting.
const envPrefix = "KALYPSO_AGENT_"

func envName(name string) string { return envPrefix + envWord(name) }

func envWord(name string) string {
	return strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(name))
}

// serviceLinks are variables that Kubernetes sets in every container of a
// namespace that has a Service whose name begins with kalypso-agent
// (enableServiceLinks in a Pod's spec, true by default). They are nobody's
// settings.
var serviceLinks = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// environment gives what variables hold by the names of their settings, and
// the path of the settings' file if one names it.
func environment(table []setting, environ []string) (path string, values map[string]string, err error) {
	known := map[string]string{}
	for i := range table {
		known[envName(table[i].name)] = table[i].name
	}
	values = map[string]string{}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		setting, ok := known[name]
		switch {
		case !strings.HasPrefix(name, envPrefix):
		case ok:
			values[setting] = value
		case name == envName(configFlag):
			path = value
		case serviceLinks.MatchString(name):
		default:
			f := &profiler.Fault{What: fmt.Sprintf("there is no setting for the variable %s", name), Fix: "kalypso-agent config show     prints all settings"}
			if word := near.Word(strings.TrimPrefix(name, envPrefix), append(names(table, envWord), envWord(configFlag))); word != "" {
				f.Fix = "did you mean " + envPrefix + word + "?"
			}
			return "", nil, f
		}
	}
	return path, values, nil
}
