package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is a size. It is written with a unit: 128Mi, 1GiB, 500MB.
type Bytes int64

// Percent is a share of a hundred, written 0.5%.
type Percent float64

// wrong is what is wrong with a value, and a value that would be right.
type wrong struct {
	why    error
	better string // empty: none is near
}

func wrongly(better, why string) *wrong { return &wrong{why: errors.New(why), better: better} }

// units of sizes, those that a size is printed with first.
var units = []struct {
	name  string
	bytes int64
}{
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3},
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"K", 1e3}, {"KB", 1e3},
	{"B", 1},
}

// String writes the size with the largest unit that leaves it whole.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && int64(b)%u.bytes == 0 {
			return strconv.FormatInt(int64(b)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

const sizeRule = "a size is a number and its unit: 128Mi, 1GiB, 500MB"

// parseBytes reads a size. Fractions of a byte are cut off.
func parseBytes(text string) (Bytes, *wrong) {
	number, unit := splitUnit(text)
	value, ok := decimal(number)
	if !ok {
		return 0, wrongly("", sizeRule)
	}
	for _, u := range units {
		if u.name == unit {
			return multiply(number, value, u.bytes)
		}
	}
	if unit == "" && value >= 1<<20 { // so many MiB are no size of anything here
		whole, wrong := multiply(number, value, 1)
		if wrong == nil {
			wrong = wrongly(whole.String(), sizeRule)
		}
		return 0, wrong
	}
	if unit == "" {
		return 0, wrongly(number+"Mi", sizeRule)
	}
	for _, u := range units {
		if strings.EqualFold(u.name, unit) || strings.EqualFold(u.name, unit+"i") {
			return 0, wrongly(number+u.name, sizeRule)
		}
	}
	return 0, wrongly("", sizeRule)
}

// multiply gives a number of units: exactly, if the number is whole.
func multiply(number string, value float64, unit int64) (Bytes, *wrong) {
	if math.Abs(value)*float64(unit) >= math.MaxInt64 {
		return 0, wrongly("", "it is more than any disk holds")
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		return Bytes(n * unit), nil
	}
	return Bytes(value * float64(unit)), nil
}

// String writes the share with as few digits as say it.
func (p Percent) String() string {
	return strconv.FormatFloat(float64(p), 'f', -1, 64) + "%"
}

const percentRule = "a percentage is a number and %: 1%, 0.5%"

func parsePercent(text string) (Percent, *wrong) {
	number, unit := splitUnit(text)
	value, ok := decimal(number)
	switch {
	case !ok:
		return 0, wrongly("", percentRule)
	case unit == "":
		return 0, wrongly(number+"%", percentRule)
	case unit != "%":
		return 0, wrongly("", percentRule)
	}
	return Percent(value), nil
}

const durationRule = "a duration is a number and its unit: 500ms, 10s, 5m, 1h"

func parseDuration(text string) (time.Duration, *wrong) {
	d, err := time.ParseDuration(text)
	if err == nil {
		return d, nil
	}
	if _, err := time.ParseDuration(text + "s"); err == nil {
		return 0, wrongly(text+"s", durationRule)
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return 0, wrongly(strconv.FormatUint(24*n, 10)+"h", durationRule)
		}
	}
	return 0, wrongly("", durationRule)
}

// durationText is a duration without the zeros that String writes: 15m, not 15m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// splitUnit cuts a value where its number ends.
func splitUnit(text string) (number, unit string) {
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != '-' && r != '+' })
	if end < 0 {
		end = len(text)
	}
	return text[:end], text[end:]
}

// decimal reads a number without exponent.
func decimal(text string) (float64, bool) {
	if strings.HasPrefix(text, "+") || strings.HasPrefix(text, ".") || strings.HasSuffix(text, ".") {
		return 0, false
	}
	value, err := strconv.ParseFloat(text, 64)
	return value, err == nil
}
