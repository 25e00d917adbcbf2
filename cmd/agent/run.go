package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/cmd/agent/internal/daemon"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

func newRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Profile this machine for as long as it runs, and send the profiles",
		Long: `Sample what runs on every CPU, and send a profile of each container, systemd
unit and program to Grafana Pyroscope or another backend at the end of each
window. What cannot be sent waits on disk. SIGHUP reads the settings again, as
--config.watch does when their file changes, SIGTERM ends, and nothing is lost
with either.`,
		Example: `  kalypso-agent run --otlp.endpoint 127.0.0.1:4040     all day long, to Pyroscope
  kalypso-agent run --config /etc/kalypso/agent.yaml   as a file says
  kalypso-agent run --export file:/var/lib/profiles    to files
  kalypso-agent config show --origin                   what holds, and why`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDaemon(cmd) },
	}
	config.Flags(cmd.Flags())
	return cmd
}

func runDaemon(cmd *cobra.Command) error {
	load := func() (*config.Config, error) { return config.Load(cmd.Flags(), os.Environ()) }
	settings, err := load()
	if err != nil {
		return cli.Wrong(err)
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	list, setDebugInfo := runtimesWithBudget()
	return daemon.Run(cmd.Context(), daemon.Config{
		Settings: settings, Reload: load, Hangup: hangup,
		Runtimes: list, OpenPerfMap: openPerfMap, SetDebugInfo: setDebugInfo,
		Version: readBuildInfo().Version, Log: cmd.ErrOrStderr(),
	})
}
