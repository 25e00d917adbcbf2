package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/profiler"
)

// stackFlags are the flags of verbs that look at the stack as it would be.
type stackFlags struct {
	file    string
	profile string
	set     []string
}

func (f *stackFlags) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.file, "file", "f", "", "settings, `kalypso.yaml` ($"+config.FileVariable+")")
	flags.StringVar(&f.profile, "profile", "", "size of the stack: small, default or ha ($"+config.ProfileVariable+")")
	flags.StringArrayVar(&f.set, "set", nil, "one value, as `component.key=value`; may be repeated")
}

// load reads the settings. What is wrong with them is wrong usage.
func (f *stackFlags) load() (*config.Config, error) {
	o := config.Options{Set: f.set}
	o.File, _ = config.Or("--file", f.file, config.FileVariable)
	o.Profile, o.ProfileVia = config.Or("--profile", f.profile, config.ProfileVariable)
	c, err := config.Load(o)
	if err != nil {
		return nil, wrongIfFault(err)
	}
	return c, nil
}

// wrongIfFault makes what a person has to mend an error of usage.
func wrongIfFault(err error) error {
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		return cli.Wrong(err)
	}
	return err
}

// choose gives the components with these names in the order of the catalogue,
// or all that are not switched off.
func choose(cmd *cobra.Command, c *config.Config, names []string) ([]component.Component, error) {
	all := component.Names(component.All())
	for _, name := range names {
		if !slices.Contains(all, name) {
			fix := "the components are " + strings.Join(all, ", ")
			if word := near.Word(name, all); word != "" {
				fix = cmd.CommandPath() + " " + word
			}
			return nil, cli.Usage(fix, "there is no component %q", name)
		}
	}
	on := c.Components()
	for _, name := range names {
		if !slices.Contains(component.Names(on), name) {
			return nil, cli.Usage("--set "+name+".enabled=true", "%s is switched off", name)
		}
	}
	if len(names) == 0 {
		return on, nil
	}
	return slices.DeleteFunc(on, func(c component.Component) bool { return !slices.Contains(names, c.Name) }), nil
}

// renderFlags are the flags of verbs that render.
type renderFlags struct {
	stackFlags
	charts      string
	kubeVersion string
}

func (f *renderFlags) register(flags *pflag.FlagSet) {
	f.stackFlags.register(flags)
	chartsFlag(flags, &f.charts, "folder of packaged upstream charts")
	flags.StringVar(&f.kubeVersion, "kube-version", helm.DefaultKubeVersion, "Kubernetes to render for")
}

func chartsFlag(flags *pflag.FlagSet, to *string, what string) {
	flags.StringVar(to, "charts", "", what+", `DIR` ($"+config.ChartsVariable+"; by default what charts pull filled)")
}

// rendered is a component and its objects.
type rendered struct {
	component.Component
	*helm.Manifests
}

// render makes the objects of the components with these names, or of all.
func (f *renderFlags) render(cmd *cobra.Command, names []string) ([]rendered, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	chosen, err := choose(cmd, c, names)
	if err != nil {
		return nil, err
	}
	if err := helm.CheckKubeVersion(f.kubeVersion); err != nil {
		return nil, cli.Wrong(err)
	}
	archives, err := openArchives(f.charts)
	if err != nil {
		return nil, err
	}
	if err := checkUpstream(c, archives, chosen); err != nil {
		return nil, err
	}
	var out []rendered
	for _, comp := range chosen {
		if err := cmd.Context().Err(); err != nil {
			return nil, err
		}
		m, err := helm.Render(c.Chart(comp.Name), archives,
			helm.Release{Name: comp.Release, Namespace: comp.Namespace, KubeVersion: f.kubeVersion}, c.Values(comp.Name))
		var wrong *helm.ValuesError
		if errors.As(err, &wrong) {
			return nil, cli.Wrong(err)
		}
		if err != nil {
			return nil, fmt.Errorf("render %s: %w", comp.Name, err)
		}
		out = append(out, rendered{comp, m})
	}
	return out, nil
}

// checkUpstream holds the values that were given against the upstream charts.
// What nothing in a chart can read is refused; where the chart may hand it on, it
// is warned of.
func checkUpstream(c *config.Config, archives *helm.Archives, chosen []component.Component) error {
	for _, comp := range chosen {
		found, err := c.Chart(comp.Name).Unknowns(archives, c.Base(comp.Name), c.Given(comp.Name))
		if err != nil {
			return err
		}
		for _, u := range found {
			path, key := comp.Name+"."+strings.Join(u.Keys, "."), u.Keys[len(u.Keys)-1]
			word := near.Word(key, u.Known)
			switch place := c.Place(comp.Name, u.Keys); {
			case u.Sure && word != "":
				return cli.Usage("did you mean "+word+"?", "%s: chart %s has no value %q (%s)", place, u.Chart, key, path)
			case u.Sure:
				return cli.Usage("helm show values "+u.Chart.Name+" --repo "+u.Chart.Repository+" --version "+u.Chart.Version+"     prints those that there are",
					"%s: chart %s has no value %q (%s)", place, u.Chart, key, path)
			case word != "":
				log.Printf("%s: chart %s does not know %s; did you mean %s?", place, u.Chart, path, word)
			default:
				log.Printf("%s: chart %s does not know %s", place, u.Chart, path)
			}
		}
	}
	return nil
}

// openArchives opens the folder of packaged charts.
func openArchives(flag string) (*helm.Archives, error) {
	dir, err := archivesDir(flag)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); flag == "" && err != nil && os.Getenv(config.ChartsVariable) == "" {
		return nil, errNoCharts{helm.NoArchives()}
	}
	return helm.OpenArchives(dir)
}

// errNoCharts is that nobody has named or filled a folder of charts yet.
type errNoCharts struct{ fault *profiler.Fault }

func (e errNoCharts) Error() string { return e.fault.Error() }
func (e errNoCharts) Unwrap() error { return e.fault }

// archivesDir is the folder of packaged charts: what --charts says, else the
// variable, else a folder for what can be had again.
func archivesDir(flag string) (string, error) {
	if dir, _ := config.Or("--charts", flag, config.ChartsVariable); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &profiler.Fault{What: "there is no folder for packaged charts", Why: err, Fix: "--charts DIR names one"}
	}
	return filepath.Join(cache, "kalypso", "charts"), nil
}
