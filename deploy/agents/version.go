package agents

import (
	"context"
	"time"
)

// versionTimeout is how long agents may take to say what they are.
const versionTimeout = 10 * time.Second

// Version is what the agent of a node says that it is.
type Version struct{ Node, Version string }

// Versions asks each agent for its version.
func (f *Fleet) Versions(ctx context.Context) ([]Version, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionTimeout, errSlow)
	defer cancel()
	return ask(ctx, f, func(a *agent) (Version, error) {
		q, err := a.client.Quality(ctx)
		if err != nil {
			return Version{}, err
		}
		return Version{a.node, q.Version}, nil
	})
}
