package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// chartVersion is a line of Chart.yaml with one of the versions that are ours.
var chartVersion = regexp.MustCompile(`(?m)^(version|appVersion): *("?)([^"\n]*)"?$`)

// setVersion writes a version into VERSION and into every chart: as the chart's own,
// and as that of the application where it is ours.
func setVersion(source, version string) error {
	if !valid(version) {
		return fmt.Errorf("%q is no version such as 0.2.0 or 0.2.0-rc.1", version)
	}
	old, err := readVersion(source)
	if err != nil {
		return err
	}
	charts, err := filepath.Glob(filepath.Join(source, "charts", "*", "Chart.yaml"))
	if err != nil {
		return err
	}
	for _, path := range charts {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, stampChart(data, old, version), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(source, versionFile), []byte(version+"\n"), 0o644)
}

// stampChart changes the version of a chart, and that of its application if it was
// the old one too.
func stampChart(data []byte, old, version string) []byte {
	return chartVersion.ReplaceAllFunc(data, func(line []byte) []byte {
		m := chartVersion.FindSubmatch(line)
		if string(m[1]) == "appVersion" && string(m[3]) != old {
			return line
		}
		return fmt.Appendf(nil, "%s: %s%s%s", m[1], m[2], version, m[2])
	})
}
