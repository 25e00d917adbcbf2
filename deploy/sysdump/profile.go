package sysdump

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/exporter/format"
)

// profileRows is how many functions the table has.
const profileRows = 50

// profile records what the nodes do for a while: the whole of it for kalypsoctl ui,
// and the hottest functions to read. Function names and paths of executables go
// through the redactor in the table alone: the other file is binary.
func (d *dump) profile(ctx context.Context) error {
	i := slices.IndexFunc(d.health, func(c status.Component) bool { return c.Name == "agent" })
	if i < 0 || d.health[i].Release == nil {
		return nil
	}
	if d.opts.Profile <= 0 {
		d.leftOut("a profile: it was not asked for")
		return nil
	}
	scope, err := agents.Find(ctx, d.cluster.Client, agents.Target{Kind: agents.Cluster})
	if err != nil {
		return err
	}
	if all := len(scope.Nodes); all > agentsAsked {
		scope.Nodes = scope.Nodes[:agentsAsked]
		d.leftOut("the profile of nodes beyond the first %d of %d", agentsAsked, all)
	}
	fleet, err := agents.Open(ctx, d.cluster.Client, d.reach, scope)
	if err != nil {
		return err
	}
	defer fleet.Close()
	for _, missing := range fleet.Missing {
		d.fail("profile", missing)
	}
	answer, err := fleet.Record(ctx, d.opts.Profile, 0)
	if err != nil {
		return err
	}
	whole := answer.Whole()
	var binary, table bytes.Buffer
	if err := (format.Pprof{}).Write(&binary, whole); err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	if err := format.WriteTable(&table, whole, format.Table{Rows: profileRows, NoCgroups: true}); err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	if err := d.keep("profile/cluster"+format.Pprof{}.Ending(), binary.Bytes()); err != nil {
		return err
	}
	return d.add("profile/functions.txt", table.Bytes())
}
