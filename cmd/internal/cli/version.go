package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// BuildInfo says which program this is.
type BuildInfo struct {
	Schema  string `json:"schema"`
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

// ReadBuildInfo takes the version and the commit that the linker stamped, and
// where they are empty (a plain "go build") those that Go embeds.
func ReadBuildInfo(version, commit string) BuildInfo {
	b := BuildInfo{
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

// Text is what people are shown of the program of this name.
func (b BuildInfo) Text(program string) string {
	return fmt.Sprintf("%s %s\ncommit  %s\ngo      %s\narch    %s\n", program, b.Version, b.Commit, b.Go, b.Arch)
}

// NewVersionCommand is the verb that prints b for the program of this name.
func NewVersionCommand(program string, b BuildInfo) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version [flags]",
		Short:   "print version, commit, Go and architecture",
		Example: fmt.Sprintf("  %-50s  which build is this?", program+" version"),
		Args:    NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := OneOf(cmd, "output", output, "text", "json"); err != nil {
				return err
			}
			var err error
			if output == "json" {
				err = WriteJSON(cmd.OutOrStdout(), b)
			} else {
				_, err = fmt.Fprint(cmd.OutOrStdout(), b.Text(program))
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
