package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/tree"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

func newRenderCommand() *cobra.Command {
	f := &renderFlags{}
	var dir string
	cmd := &cobra.Command{
		Use:   "render [flags] [COMPONENT…]",
		Short: "the stack as Kubernetes objects; needs no cluster",
		Long: `Print the Kubernetes objects of the stack, or of some of its components, as they
would be installed. The same settings give the same bytes.

With -d each object is a file of its own: DIR/COMPONENT/ has the objects of a
release, crds/ below it what has to be there before them, hooks/ what Helm runs at
certain times and is not printed without -d. DIR/SHA256SUMS lists the files; what an
earlier render left and this one does not have is deleted, other files stay.

Namespaces and Secrets are not in it: kalypsoctl explain COMPONENT names those that
a component needs.`,
		Example: `  kalypsoctl render -d out                            every object a file, to read or to compare
  kalypsoctl render loki | kubectl diff -f -          what would change on a cluster
  kalypsoctl render --profile small --charts DIR      the small stack, with charts from a folder`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := f.render(cmd, args)
			if err != nil {
				return err
			}
			if dir == "" {
				if err := writeStream(cmd.OutOrStdout(), all); err != nil {
					return fmt.Errorf("print the objects: %w", err)
				}
				return nil
			}
			files := tree.Files{}
			for _, r := range all {
				addFiles(files, r)
			}
			if err := tree.Write(dir, files); err != nil {
				return err
			}
			if err := summary(cmd.OutOrStdout(), all, dir); err != nil {
				return fmt.Errorf("print the summary: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "write files into `DIR`")
	f.register(cmd.Flags())
	return cmd
}

// writeStream prints objects as YAML documents, in the order that they are
// applied in. Hooks are not among them: applied, one that is meant for a
// deletion would run.
func writeStream(out io.Writer, all []rendered) error {
	w := bufio.NewWriter(out)
	for _, r := range all {
		for _, o := range slices.Concat(r.CRDs, r.Objects) {
			fmt.Fprintf(w, "---\n# %s: %s\n%s", r.Name, o.Template, o.YAML)
		}
	}
	return w.Flush()
}

func addFiles(files tree.Files, r rendered) {
	for folder, objects := range map[string][]helm.Object{"": r.Objects, "crds": r.CRDs, "hooks": r.Hooks} {
		for _, o := range objects {
			namespace := o.Namespace
			if namespace == r.Namespace {
				namespace = ""
			}
			files.Add(fmt.Sprintf("# %s\n%s", o.Template, o.YAML), []string{r.Name, folder}, o.Kind, o.Name, namespace)
		}
	}
}

// summary tells how much was rendered.
func summary(out io.Writer, all []rendered, dir string) error {
	var rows [][]string
	objects := 0
	for _, r := range all {
		objects += len(r.Objects) + len(r.CRDs) + len(r.Hooks)
		rows = append(rows, []string{r.Name, r.Namespace, strconv.Itoa(len(r.Objects)), strconv.Itoa(len(r.CRDs)), strconv.Itoa(len(r.Hooks))})
	}
	if err := term.For(out, os.Getenv).Table(out, []string{"component", "namespace", "objects", "crds", "hooks"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s of %s in %s\n", kube.Count(objects, "object"), kube.Count(len(all), "component"), dir)
	return err
}
