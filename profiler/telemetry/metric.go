package telemetry

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Kind says what the values of a metric mean.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota // a total since the agent began; it never falls
	Gauge               // what is the case now
)

// String gives the kind's name as on a Prometheus page.
func (k Kind) String() string {
	if k == Counter {
		return "counter"
	}
	return "gauge"
}

// Metric is one instrument of the agent: what it is called, what it means, and
// how its owner tells its values when they are asked for.
type Metric struct {
	Name        string // as it appears everywhere; a Counter's ends in _total
	Unit        string // UCUM: "By", "s", "Hz", "1" for a ratio, "{sample}" for things that are counted; empty for none
	Description string // what a value means, one sentence
	Kind        Kind
	Labels      []string // names; there must be few values of each
	// Read gives every value that there is, each with as many label values as
	// Labels has names, no two with the same ones. It is called when somebody
	// scrapes or a push is due, never by two goroutines at once.
	Read func(observe Observe)
}

// Observe takes one value of a metric.
type Observe func(value float64, labelValues ...string)

var (
	metricName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	// Prometheus has the unit in the name; OpenTelemetry has it beside the name.
	// A page that has one thing in the name and another in the unit is wrong.
	unitSuffix = map[string]string{"By": "_bytes", "s": "_seconds", "1": "_ratio", "Hz": "_hertz"}
)

// validate says what would make the metric's lines wrong or hard to use.
func (m *Metric) validate() error {
	base, counter := strings.CutSuffix(m.Name, "_total")
	switch {
	case !metricName.MatchString(m.Name):
		return fmt.Errorf("metric %q: a name is lower-case letters, digits and underscores", m.Name)
	case m.Description == "":
		return fmt.Errorf("metric %s has no description", m.Name)
	case m.Read == nil:
		return fmt.Errorf("metric %s has nobody to read it from", m.Name)
	case m.Kind == Counter && !counter:
		return fmt.Errorf("metric %s is a counter: its name must end in _total", m.Name)
	case m.Kind == Gauge && counter:
		return fmt.Errorf("metric %s is a gauge: its name must not end in _total", m.Name)
	case unitSuffix[m.Unit] == "" && m.Unit != "" && !(strings.HasPrefix(m.Unit, "{") && strings.HasSuffix(m.Unit, "}")):
		return fmt.Errorf("metric %s: the unit %q is none of By, s, 1, Hz and {things}", m.Name, m.Unit)
	}
	for unit, suffix := range unitSuffix {
		if strings.HasSuffix(base, suffix) != (m.Unit == unit) {
			return fmt.Errorf("metric %s: the unit %q and a name with %s go together", m.Name, unit, suffix)
		}
	}
	for i, label := range m.Labels {
		if !metricName.MatchString(label) || slices.Contains(m.Labels[:i], label) {
			return fmt.Errorf("metric %s: the label %q is not lower-case letters, digits and underscores, or there twice", m.Name, label)
		}
	}
	return nil
}

// validate also says when two metrics have the same name.
func validate(metrics []Metric) error {
	names := map[string]bool{}
	var errs []error
	for i := range metrics {
		m := &metrics[i]
		errs = append(errs, m.validate())
		if names[m.Name] {
			errs = append(errs, fmt.Errorf("there are two metrics %s", m.Name))
		}
		names[m.Name] = true
	}
	return errors.Join(errs...)
}
