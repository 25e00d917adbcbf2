// Package upstream has charts that stand in for the upstream ones of the stack,
// which are not in the repository: of the same names and versions, with the
// workloads, Services, volumes, custom resources, webhooks and hooks that others
// notice, and nothing in their containers. They take the values that our charts
// pass. With KALYPSO_UPSTREAM_CHARTS=DIR tests use the real ones.
package upstream

import (
	"embed"
	"fmt"
	"os"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// Variable names a folder of packaged upstream charts.
const Variable = "KALYPSO_UPSTREAM_CHARTS"

//go:embed all:charts
var files embed.FS

// Charts is a folder of packaged charts, for --charts: the real ones where there
// are some, else stand-ins.
func Charts(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(Variable); dir != "" {
		return dir
	}
	dir := t.TempDir()
	if err := Package(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Package writes the stand-ins into a folder, one for each chart that ours depend
// on, in the version that they pin.
func Package(dir string) error {
	helpers, err := files.ReadFile("charts/_helpers.tpl")
	if err != nil {
		return err
	}
	for _, c := range component.All() {
		fsys, err := charts.Open(c.Chart)
		if err != nil {
			return err
		}
		ours, err := helm.Open(fsys)
		if err != nil {
			return fmt.Errorf("open %s: %w", c.Chart, err)
		}
		for _, d := range ours.Dependencies(nil) {
			objects, err := files.ReadFile("charts/" + d.Name + ".yaml")
			if err != nil {
				return fmt.Errorf("there is no stand-in for %s: %w", d, err)
			}
			standIn := &chart.Chart{
				Metadata: &chart.Metadata{APIVersion: chart.APIVersionV2, Name: d.Name, Version: d.Version},
				Templates: []*chart.File{
					{Name: "templates/_helpers.tpl", Data: helpers},
					{Name: "templates/objects.yaml", Data: objects},
				},
			}
			if _, err := chartutil.Save(standIn, dir); err != nil {
				return fmt.Errorf("package the stand-in for %s: %w", d, err)
			}
		}
	}
	return nil
}
