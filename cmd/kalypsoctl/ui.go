package main

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/web"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/profiler"
)

type uiFlags struct {
	profileFlags
	port      int
	noBrowser bool
}

func newUICommand() *cobra.Command {
	f := &uiFlags{}
	cmd := &cobra.Command{
		Use:   "ui [flags] [FILE… | TARGET]",
		Short: "profiles in a browser: flame graph, table, callers, and pprof's own pages",
		Long: `Show pprof files, or what a target did in the last minute, in a browser: a flame
graph, a table, callers and callees, and below /pprof/ the pages of pprof. Listens on
localhost only and loads nothing from the network. ^C ends it.

` + targetHelp + ` Of several files there is a
list.`,
		Example: `  kalypsoctl ui checkout.pb.gz                        a file
  kalypsoctl ui old.pb.gz new.pb.gz                   both, in a list
  kalypsoctl ui deploy/checkout                       its last minute, from the agents
  kalypsoctl ui --from -15m --port 8080               all that the agents remember of the cluster`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) <= 1 {
				return nil
			}
			if i := slices.IndexFunc(args, func(a string) bool { return !exists(a) }); i >= 0 {
				return cli.Usage(cmd.CommandPath()+" FILE FILE", "ui takes files or one target: there is no file %q", args[i])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.port, "port", 0, "port on this machine (any that is free)")
	fl.BoolVar(&f.noBrowser, "no-browser", false, "open no browser")
	f.period.register(fl)
	f.scopeFlags.register(cmd)
	cmd.ValidArgsFunction = nil // files
	return cmd
}

func (f *uiFlags) run(cmd *cobra.Command, args []string) error {
	if f.port < 0 || f.port > 65535 {
		return cli.Usage("--port 8080", "there is no port %d", f.port)
	}
	pages, err := f.pages(cmd, args)
	if err != nil {
		return err
	}
	return web.Serve(cmd.Context(), cmd.OutOrStdout(), web.Config{Port: f.port, NoBrowser: f.noBrowser}, pages...)
}

func (f *uiFlags) pages(cmd *cobra.Command, args []string) ([]web.Page, error) {
	target := ""
	if len(args) == 1 && !exists(args[0]) {
		if _, err := agents.ParseTarget(args[0], ""); err != nil {
			return nil, cli.Wrong(&profiler.Fault{What: "there is no file " + args[0] + ", and no such target", Fix: "give a pprof file, or a target: " + agents.Forms})
		}
		target = args[0]
	} else if len(args) > 0 {
		var pages []web.Page
		for _, path := range args {
			p, err := readProfile(path)
			if err != nil {
				return nil, err
			}
			if p.Host == "" {
				p.Host = filepath.Base(path)
			}
			pages = append(pages, web.Page{Name: path, Profile: p})
		}
		return pages, nil
	}
	if !f.given() {
		f.from = "-" + time.Minute.String()
	}
	if err := f.period.check(time.Now()); err != nil {
		return nil, err
	}
	got, err := f.read(cmd, target, nil)
	if err != nil {
		return nil, err
	}
	tellRemarks(cmd.ErrOrStderr(), got.profile)
	return []web.Page{{Name: got.profile.Host, Profile: got.profile}}, nil
}
