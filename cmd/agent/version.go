package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Stamped by the Makefile with -ldflags -X; empty in a plain "go build", which
// takes both from the build information that Go embeds.
var (
	version string
	commit  string
)

// buildInfo says which program this is.
type buildInfo struct {
	Schema  string `json:"schema"`
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{
		Schema:  "kalypso.version/v1",
		Version: version,
		Commit:  commit,
		Go:      runtime.Version(),
		Arch:    runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && b.Commit == "" {
				b.Commit = s.Value
			}
		}
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	return b
}

func newVersionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version [flags]",
		Short:   "print version, commit, Go and architecture",
		Example: "  kalypso-agent version                               which build is this?",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(cmd, "output", output, "text", "json"); err != nil {
				return err
			}
			b := readBuildInfo()
			var err error
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(b)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "kalypso-agent %s\ncommit  %s\ngo      %s\narch    %s\n",
					b.Version, b.Commit, b.Go, b.Arch)
			}
			if err != nil {
				return fmt.Errorf("print the version: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().SortFlags = false
	return cmd
}
