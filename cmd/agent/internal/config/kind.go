package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	kubelabels "k8s.io/apimachinery/pkg/labels"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// kind is how values of one Go type are written.
type kind[T any] struct {
	word  string // what --help and the reference call a value
	yaml  string // the only YAML tag it may have; empty: any scalar, whose text is read
	parse func(text string) (T, *wrong)
	text  func(T) string
}

// Tags of YAML scalars.
const (
	tagText  = "!!str"
	tagWhole = "!!int"
	tagBool  = "!!bool"
	tagNull  = "!!null"
)

func same(s string) string { return s }

// free is text of any kind.
func free(word string) kind[string] {
	return kind[string]{word, tagText, func(text string) (string, *wrong) {
		if profiler.Printable(text) != text {
			return "", wrongly("", "it holds characters that cannot be printed")
		}
		return text, nil
	}, same}
}

func file() kind[string] { return free("FILE") }

func whole() kind[int] {
	return kind[int]{"N", tagWhole, func(text string) (int, *wrong) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0, wrongly("", "it takes a whole number")
		}
		return n, nil
	}, strconv.Itoa}
}

func truth() kind[bool] {
	return kind[bool]{"", tagBool, func(text string) (bool, *wrong) {
		better := ""
		switch strings.ToLower(text) {
		case "true", "yes", "y", "on", "1":
			better = "true"
		case "false", "no", "n", "off", "0":
			better = "false"
		}
		if better == "" || text != better {
			return false, wrongly(better, "it takes true and false")
		}
		return text == "true", nil
	}, strconv.FormatBool}
}

func duration() kind[time.Duration] {
	return kind[time.Duration]{"DURATION", "", parseDuration, durationText}
}

func size() kind[Bytes] { return kind[Bytes]{"SIZE", "", parseBytes, Bytes.String} }

func percent() kind[Percent] {
	return kind[Percent]{"PERCENT", "", parsePercent, Percent.String}
}

// between is a kind whose values have bounds. They hold for values that are
// better than what was written, too.
func between[T cmp.Ordered](k kind[T], low, high T) kind[T] {
	parse := k.parse
	k.parse = func(text string) (T, *wrong) {
		value, wrong := parse(text)
		meant, known := value, wrong == nil
		if !known && wrong.better != "" {
			better, still := parse(wrong.better)
			meant, known = better, still == nil
		}
		if known && (meant < low || meant > high) {
			wrong = wrongly(k.text(min(max(meant, low), high)), fmt.Sprintf("it must be between %s and %s", k.text(low), k.text(high)))
		}
		return value, wrong
	}
	return k
}

// choice is one of a few words.
func choice(words ...string) kind[string] {
	return kind[string]{strings.Join(words, "|"), tagText, func(text string) (string, *wrong) {
		if !slices.Contains(words, text) {
			return "", wrongly(near.Word(strings.ToLower(text), words), "it takes "+strings.Join(words, ", "))
		}
		return text, nil
	}, same}
}

func level() kind[slog.Level] {
	words := choice("debug", "info", "warn", "error")
	return kind[slog.Level]{words.word, tagText, func(text string) (slog.Level, *wrong) {
		if _, wrong := words.parse(text); wrong != nil {
			return 0, wrong
		}
		var l slog.Level
		_ = l.UnmarshalText([]byte(text)) // it knows the four words
		return l, nil
	}, func(l slog.Level) string { return strings.ToLower(l.String()) }}
}

// endpoint is where a backend is: HOST:PORT or a URL. usual is the port that it
// most likely has.
func endpoint(usual string) kind[string] {
	return kind[string]{"HOST:PORT", tagText, func(text string) (string, *wrong) {
		const rule = "it is HOST:PORT, or a URL that begins with http:// or https://"
		switch {
		case text == "":
			return "", nil
		case strings.ContainsAny(text, secretMarks):
			return "", wrongly("", "it has a user or a query in it; secrets are in files only")
		case strings.Contains(text, "://"):
			u, err := url.Parse(text)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
				return "", wrongly("", rule)
			}
			return text, nil
		}
		host, port, ok := hostPort(text)
		switch {
		case !ok && (net.ParseIP(text) != nil || !strings.ContainsAny(text, ":/ []")):
			return "", wrongly(net.JoinHostPort(text, usual), rule)
		case !ok || port == 0:
			return "", wrongly("", rule)
		case host == "":
			return "", wrongly("127.0.0.1"+text, rule)
		}
		return text, nil
	}, same}
}

// hostPort takes HOST:PORT apart. The host may be empty.
func hostPort(text string) (host string, port uint64, ok bool) {
	host, number, err := net.SplitHostPort(text)
	if err != nil || strings.ContainsAny(host, "/ ") {
		return "", 0, false
	}
	port, err = strconv.ParseUint(number, 10, 16)
	return host, port, err == nil
}

// socketLimit is the longest path of a Unix socket: sizeof(sun_path) in unix(7),
// with a zero at its end.
const socketLimit = 107

// listener is where the agent answers: HOST:PORT, unix:PATH or nowhere.
func listener() kind[string] {
	return kind[string]{"HOST:PORT|unix:PATH", tagText, func(text string) (string, *wrong) {
		path, socket := strings.CutPrefix(text, "unix:")
		switch {
		case text == "":
			return "", nil
		case socket && (!filepath.IsAbs(path) || len(path) > socketLimit):
			return "", wrongly("unix:/run/kalypso-agent.sock", fmt.Sprintf("the path of a socket begins with / and has at most %d bytes", socketLimit))
		case socket:
			return text, nil
		case filepath.IsAbs(text):
			return "", wrongly("unix:"+text, "a socket is written unix:PATH")
		}
		if _, _, ok := hostPort(text); !ok {
			return "", wrongly("", "it is HOST:PORT, the port a number up to 65535, or unix:PATH")
		}
		return text, nil
	}, same}
}

// Export is one way that profiles leave the agent.
type Export struct {
	Kind string // "otlp", "pprof" or "file"
	Dir  string // of "file"
}

// String is how it is written in settings.
func (e Export) String() string {
	if e.Kind == "file" {
		return "file:" + e.Dir
	}
	return e.Kind
}

func export() kind[Export] {
	return kind[Export]{"otlp|pprof|file:DIR", tagText, func(text string) (Export, *wrong) {
		dir, isFile := strings.CutPrefix(text, "file:")
		switch {
		case text == "otlp", text == "pprof":
			return Export{Kind: text}, nil
		case isFile && dir != "":
			return Export{Kind: "file", Dir: dir}, nil
		case filepath.IsAbs(text):
			return Export{}, wrongly("file:"+text, "it takes otlp, pprof and file:DIR")
		}
		return Export{}, wrongly(near.Word(text, []string{"otlp", "pprof"}), "it takes otlp, pprof and file:DIR")
	}, Export.String}
}

// selector is one of labels, in the language of kubectl -l.
func selector() kind[string] {
	return kind[string]{"SELECTOR", tagText, func(text string) (string, *wrong) {
		if _, err := kubelabels.Parse(text); err != nil {
			return "", wrongly("", "it is no label selector: "+profiler.Printable(err.Error()))
		}
		return text, nil
	}, same}
}

// pattern is a name in which * stands for anything.
func pattern() kind[string] {
	return kind[string]{"PATTERN", tagText, func(text string) (string, *wrong) {
		if text == "" {
			return "", wrongly("", "a pattern is a name, in which * stands for anything")
		}
		return free("").parse(text)
	}, same}
}

// commLimit is what the kernel keeps of a process's name: TASK_COMM_LEN of
// include/linux/sched.h, less the zero at its end.
const commLimit = 15

func commPattern() kind[string] {
	k := pattern()
	parse := k.parse
	k.parse = func(text string) (string, *wrong) {
		if len(text) > commLimit && !strings.Contains(text, "*") {
			return "", wrongly(text[:commLimit], fmt.Sprintf("the kernel keeps %d bytes of a process's name, this has %d", commLimit, len(text)))
		}
		return parse(text)
	}
	return k
}

// Limits of labels. The exporters send 25 names of a series, of which a pod needs
// up to 15; and values of 2048 bytes.
const (
	labelsLimit     = 8
	labelKeyLimit   = 128
	labelValueLimit = 1024
)

// label is one attribute, written KEY=VALUE.
func label() kind[profiler.Attribute] {
	return kind[profiler.Attribute]{"KEY=VALUE", tagText, func(text string) (profiler.Attribute, *wrong) {
		key, value, found := strings.Cut(text, "=")
		switch {
		case !found:
			return profiler.Attribute{}, wrongly("", "a label is KEY=VALUE")
		case key == "service.name":
			return profiler.Attribute{}, wrongly("", "--service.name sets it")
		case !labelKey(key):
			return profiler.Attribute{}, wrongly("", fmt.Sprintf("a key begins with a letter, goes on with letters, digits, dots and underscores, and has at most %d", labelKeyLimit))
		case value == "" || len(value) > labelValueLimit || profiler.Printable(value) != value:
			return profiler.Attribute{}, wrongly("", fmt.Sprintf("a value is printable text of at most %d bytes, and not empty", labelValueLimit))
		}
		return profiler.Attribute{Key: key, Value: value}, nil
	}, func(a profiler.Attribute) string { return a.Key + "=" + a.Value }}
}

func labelKey(key string) bool {
	for i, r := range key {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || !(r >= '0' && r <= '9' || r == '.' || r == '_')) {
			return false
		}
	}
	return key != "" && len(key) <= labelKeyLimit
}
