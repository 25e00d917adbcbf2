package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// setting is one line of the table.
type setting struct {
	name     string // dotted; also the flag's name and the path in YAML
	word     string // what a value is called; empty for true and false
	shape    shape
	yaml     string // the only tag of its YAML scalars; empty: any
	fallback string // the default, as it is written in a flag
	help     string
	live     bool // it can change while the agent runs

	// set reads the words of a value: one of a scalar, any number of a list.
	// When a word is wrong, index says which.
	set func(c *Config, words []string) (index int, wrong *wrong)
	// words is the value as set reads it.
	words func(c *Config) []string
}

// shape is how many words a value has.
type shape uint8

const (
	scalar shape = iota
	list         // commas in flags and variables, a sequence in YAML
	pairs        // KEY=VALUE with commas in flags and variables, a mapping in YAML
)

// one is a setting with one value.
func one[T any](name string, k kind[T], fallback, help string, at func(*Config) *T) setting {
	return setting{
		name: name, word: k.word, yaml: k.yaml, fallback: fallback, help: help,
		set: func(c *Config, words []string) (int, *wrong) {
			value, wrong := k.parse(words[0])
			if wrong == nil {
				*at(c) = value
			}
			return 0, wrong
		},
		words: func(c *Config) []string { return []string{k.text(*at(c))} },
	}
}

// many is a setting with a list of values.
func many[T any](name string, k kind[T], fallback, help string, at func(*Config) *[]T) setting {
	return setting{
		name: name, word: k.word, shape: list, yaml: k.yaml, fallback: fallback, help: help,
		set: func(c *Config, words []string) (int, *wrong) {
			values := make([]T, 0, len(words))
			for i, word := range words {
				value, wrong := k.parse(word)
				if wrong != nil {
					return i, wrong
				}
				values = append(values, value)
			}
			*at(c) = values
			return 0, nil
		},
		words: func(c *Config) []string {
			words := []string{}
			for _, v := range *at(c) {
				words = append(words, k.text(v))
			}
			return words
		},
	}
}

// labels is a list with keys, none of them twice.
func labels(name, help string, at func(*Config) *[]profiler.Attribute) setting {
	s := many(name, label(), "", help, at)
	s.shape = pairs
	set := s.set
	s.set = func(c *Config, words []string) (int, *wrong) {
		if len(words) > labelsLimit {
			return labelsLimit, wrongly("", fmt.Sprintf("there may be %d labels, these are %d: backends bound how many a series has", labelsLimit, len(words)))
		}
		if i, wrong := set(c, words); wrong != nil {
			return i, wrong
		}
		for i, a := range *at(c) {
			if slices.ContainsFunc((*at(c))[:i], func(b profiler.Attribute) bool { return a.Key == b.Key }) {
				return i, wrongly("", fmt.Sprintf("the key %s is there twice", a.Key))
			}
		}
		slices.SortFunc(*at(c), func(a, b profiler.Attribute) int { return cmp.Compare(a.Key, b.Key) })
		return 0, nil
	}
	return s
}

// running marks a setting that can change while the agent runs.
func running(s setting) setting {
	s.live = true
	return s
}

// settings is the table, in the order of the reference. Settings of one section
// stand together.
func settings() []setting {
	return []setting{
		many("export", export(), "otlp", "where profiles go: otlp and pprof (Pyroscope's own protocol) to otlp.endpoint, file:DIR to files; may be given again",
			func(c *Config) *[]Export { return &c.Export }),

		one("otlp.endpoint", endpoint("4040"), "", "the backend; a URL may have a path, which goes before that of each HTTP request",
			func(c *Config) *string { return &c.OTLP.Endpoint }),
		one("otlp.protocol", choice("grpc", "http"), "grpc", "how OTLP travels",
			func(c *Config) *string { return &c.OTLP.Protocol }),
		one("otlp.insecure", truth(), "false", "no TLS; true by itself for an endpoint on this machine without TLS settings",
			func(c *Config) *bool { return &c.OTLP.Insecure }),
		one("otlp.tls.ca", file(), "", "certificates that the server's must be signed by, PEM; empty: the system's",
			func(c *Config) *string { return &c.OTLP.TLS.CA }),
		one("otlp.tls.cert", file(), "", "the agent's own certificate, PEM, where the server asks for one",
			func(c *Config) *string { return &c.OTLP.TLS.Cert }),
		one("otlp.tls.key", file(), "", "its key, PEM",
			func(c *Config) *string { return &c.OTLP.TLS.Key }),
		one("otlp.tls.server-name", free("NAME"), "", "name in the server's certificate; empty: the endpoint's host",
			func(c *Config) *string { return &c.OTLP.TLS.ServerName }),
		one("otlp.basic.user", free("NAME"), "", "user of basic authentication",
			func(c *Config) *string { return &c.OTLP.Basic.User }),
		one("otlp.basic.password-file", file(), "", "file with the password",
			func(c *Config) *string { return &c.OTLP.Basic.PasswordFile }),
		one("otlp.bearer-token-file", file(), "", "file with a bearer token",
			func(c *Config) *string { return &c.OTLP.BearerTokenFile }),
		one("otlp.headers-file", file(), "", "file with headers to send along, one \"Name: value\" a line",
			func(c *Config) *string { return &c.OTLP.HeadersFile }),
		one("otlp.tenant", free("NAME"), "", "tenant, sent as X-Scope-OrgID",
			func(c *Config) *string { return &c.OTLP.Tenant }),
		one("otlp.timeout", between(duration(), time.Second, 5*time.Minute), "15s", "how long one request may take; Pyroscope answers when it has stored the profiles",
			func(c *Config) *time.Duration { return &c.OTLP.Timeout }),

		running(one("frequency", between(whole(), 1, 10000), "97", "samples a second and CPU, while the agent is within cpu.budget",
			func(c *Config) *int { return &c.Frequency })),
		one("window", between(duration(), time.Second, 10*time.Minute), "15s", "time that one profile covers; windows begin at multiples of it by the wall clock",
			func(c *Config) *time.Duration { return &c.Window }),
		one("kernel", truth(), "true", "kernel stacks too",
			func(c *Config) *bool { return &c.Kernel }),

		running(many("include.service", pattern(), "", "only processes whose service.name is like one of these; * stands for anything",
			func(c *Config) *[]string { return &c.Include.Service })),
		running(many("include.comm", commPattern(), "", "only processes whose name is like one of these",
			func(c *Config) *[]string { return &c.Include.Comm })),
		running(many("include.cgroup", pattern(), "", "only processes in a cgroup like one of these, and below",
			func(c *Config) *[]string { return &c.Include.Cgroup })),
		running(many("include.namespace", pattern(), "", "only pods of Kubernetes namespaces like one of these; processes in no pod are left out",
			func(c *Config) *[]string { return &c.Include.Namespace })),
		running(many("exclude.namespace", pattern(), "", "no pods of Kubernetes namespaces like one of these",
			func(c *Config) *[]string { return &c.Exclude.Namespace })),
		running(many("exclude.service", pattern(), "", "no processes whose service.name is like one of these",
			func(c *Config) *[]string { return &c.Exclude.Service })),
		running(many("exclude.comm", commPattern(), "", "no processes whose name is like one of these",
			func(c *Config) *[]string { return &c.Exclude.Comm })),
		running(many("exclude.cgroup", pattern(), "", "no processes in a cgroup like one of these, and below",
			func(c *Config) *[]string { return &c.Exclude.Cgroup })),
		running(labels("labels", "attributes that every profile gets",
			func(c *Config) *[]profiler.Attribute { return &c.Labels })),
		running(one("service.name", free("NAME"), "", "service.name of processes that are in no unit and no container; empty: their program's name",
			func(c *Config) *string { return &c.Service.Name })),

		one("kubernetes.source", choice("auto", "api", "kubelet", "off"), "auto", "who is asked for the pods of this node; auto: in a pod the API server, and the kubelet if that refuses; elsewhere nobody",
			func(c *Config) *string { return &c.Kubernetes.Source }),
		one("kubernetes.node", free("NAME"), "", "this node's name in its cluster (spec.nodeName); it is in every profile as k8s.node.name",
			func(c *Config) *string { return &c.Kubernetes.Node }),
		running(one("kubernetes.selector", selector(), "", "only pods whose labels are like this, as kubectl -l takes it: app in (a,b),tier!=test; processes in no pod stay",
			func(c *Config) *string { return &c.Kubernetes.Selector })),
		running(one("kubernetes.opt-in", truth(), "false", "only pods with the annotation profiles.kalypso.io/enabled: \"true\"; those with \"false\" are left out in any case",
			func(c *Config) *bool { return &c.Kubernetes.OptIn })),
		one("kubernetes.kubelet.address", endpoint("10250"), "", "the node's kubelet; empty: port 10250 of kubernetes.node",
			func(c *Config) *string { return &c.Kubernetes.Kubelet.Address }),
		one("kubernetes.kubelet.ca", file(), "", "certificates that the kubelet's must be signed by, PEM; empty: the cluster's",
			func(c *Config) *string { return &c.Kubernetes.Kubelet.CA }),
		one("kubernetes.kubelet.skip-verify", truth(), "false", "take any certificate of the kubelet: most sign their own, and it is reached on the node itself",
			func(c *Config) *bool { return &c.Kubernetes.Kubelet.SkipVerify }),

		one("spool.dir", free("DIR"), "/var/lib/kalypso-agent/spool", "where profiles wait for the backend; empty: in memory only",
			func(c *Config) *string { return &c.Spool.Dir }),
		one("spool.max", between(size(), 1<<20, 1<<40), "256Mi", "bytes that may wait; beyond, the oldest are dropped and counted",
			func(c *Config) *Bytes { return &c.Spool.Max }),
		one("spool.max-age", between(duration(), time.Minute, 7*24*time.Hour), "59m", "age at which what waits is dropped and counted; more than 1h is for backends that take it: Pyroscope refuses that by default",
			func(c *Config) *time.Duration { return &c.Spool.MaxAge }),

		running(one("cpu.budget", between(percent(), 0.05, 100), "1%", "CPU time that the agent may take of all CPUs together; above it the sampling rate falls",
			func(c *Config) *Percent { return &c.CPU.Budget })),
		running(one("memory.budget", between(size(), 96<<20, 1<<40), "128Mi", "memory that the agent may take, BPF maps included",
			func(c *Config) *Bytes { return &c.Memory.Budget })),
		one("history", between(duration(), 0, 24*time.Hour), "15m", "how long profiles stay in memory for the local API, within memory.budget; 0s: not at all",
			func(c *Config) *time.Duration { return &c.History }),

		one("listen", listener(), "127.0.0.1:4041", "where the API, /metrics, /healthz and /readyz are served; empty: nowhere",
			func(c *Config) *string { return &c.Listen.Address }),
		one("listen.allow-remote", truth(), "false", "let other machines read /metrics, /healthz and /readyz; profiles are for this one only",
			func(c *Config) *bool { return &c.Listen.AllowRemote }),

		one("telemetry.otlp.endpoint", endpoint("4317"), "", "where the agent's own metrics are pushed to; empty: they are only served",
			func(c *Config) *string { return &c.Telemetry.OTLP.Endpoint }),
		one("telemetry.otlp.protocol", choice("grpc", "http"), "grpc", "how they travel",
			func(c *Config) *string { return &c.Telemetry.OTLP.Protocol }),
		one("telemetry.otlp.insecure", truth(), "false", "no TLS; true by itself for an endpoint on this machine without tls.ca",
			func(c *Config) *bool { return &c.Telemetry.OTLP.Insecure }),
		one("telemetry.otlp.tls.ca", file(), "", "certificates that the server's must be signed by, PEM; empty: the system's",
			func(c *Config) *string { return &c.Telemetry.OTLP.CA }),
		one("telemetry.otlp.headers-file", file(), "", "file with headers to send along, one \"Name: value\" a line",
			func(c *Config) *string { return &c.Telemetry.OTLP.HeadersFile }),

		running(one("log.level", level(), "info", "the least that is logged",
			func(c *Config) *slog.Level { return &c.Log.Level })),
		one("log.format", choice("text", "json"), "text", "how a line looks",
			func(c *Config) *string { return &c.Log.Format }),
		one("config.watch", truth(), "false", "read the file of settings again within 5 s when its text changes, as SIGHUP does",
			func(c *Config) *bool { return &c.WatchFile }),
		one("verifier-log", file(), "", "file for what the kernel's verifier says of a program that it refuses",
			func(c *Config) *string { return &c.VerifierLog }),
	}
}

// find gives the setting of a name.
func find(table []setting, name string) *setting {
	for i := range table {
		if table[i].name == name {
			return &table[i]
		}
	}
	return nil
}

// names of all settings, each as spell writes it.
func names(table []setting, spell func(string) string) []string {
	out := make([]string, len(table))
	for i := range table {
		out[i] = spell(table[i].name)
	}
	return out
}

// section says whether there are settings below this name.
func section(table []setting, name string) bool {
	return slices.ContainsFunc(table, func(s setting) bool { return strings.HasPrefix(s.name, name+".") })
}

// split cuts what a flag or a variable holds into the words of a value.
func (s *setting) split(text string) []string {
	switch {
	case s.shape == scalar:
		return []string{text}
	case text == "":
		return nil
	}
	return strings.Split(text, ",")
}

// join is the reverse of split.
func (s *setting) join(c *Config) string { return strings.Join(s.words(c), ",") }

// defaults is the configuration of an agent that was told nothing.
func defaults(table []setting) *Config {
	c := &Config{origins: map[string]Origin{}}
	for i := range table {
		s := &table[i]
		if _, wrong := s.set(c, s.split(s.fallback)); wrong != nil {
			panic(fmt.Sprintf("the default of %s: %v", s.name, wrong.why)) // a mistake in the table: every test finds it
		}
	}
	return c
}
