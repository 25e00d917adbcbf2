package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/bucket"
)

func newBucketsCommand() *cobra.Command {
	var (
		endpoint, region string
		timeout          time.Duration
	)
	cmd := &cobra.Command{
		Use:   "buckets [flags] BUCKET…",
		Short: "make buckets in the object store; a Job of kalypso-minio runs this",
		Long: `Wait for an object store that speaks S3 and make buckets in it. Those that are
there already are left as they are. A Job of the chart kalypso-minio runs this.

The key comes from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.`,
		Example: `  kalypsoctl buckets --endpoint https://s3.example.org loki-chunks    one bucket in a store of yours`,
		// Pods run it; among the verbs for people it would be one too many.
		Hidden: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage(cli.HelpOf(cmd), "%s takes the names of buckets", cmd.Name())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := bucket.Open(bucket.Config{
				Endpoint:  endpoint,
				Region:    region,
				AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"),
				SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"),
			})
			if err != nil {
				return wrongIfFault(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return makeBuckets(ctx, store, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "the store, `URL`")
	cmd.Flags().StringVar(&region, "region", "", "region of the buckets (by default the one that the store names)")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for the store")
	return cmd
}

// makeBuckets has the buckets, one after another, and tells of each. What is
// waited for is told when it changes.
func makeBuckets(ctx context.Context, store *bucket.Store, names []string, out, progress io.Writer) error {
	mark := term.For(out, os.Getenv).Passed()
	width := 0
	for _, name := range names {
		width = max(width, len(name))
	}
	var said string
	waiting := func(reason error) {
		if text := reason.Error(); text != said {
			said = text
			_, _ = fmt.Fprintf(progress, "waiting for the object store: %s\n", text)
		}
	}
	for _, name := range names {
		made, err := store.Ensure(ctx, name, waiting)
		if errors.Is(err, context.DeadlineExceeded) {
			return cli.TimedOut(err)
		}
		if err != nil {
			return err
		}
		what := "is there"
		if made {
			what = "made"
		}
		if _, err := fmt.Fprintf(out, "  %s %-*s  %s\n", mark, width, name, what); err != nil {
			return fmt.Errorf("print the buckets: %w", err)
		}
	}
	return nil
}
