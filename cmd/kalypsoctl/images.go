package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/image"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// imageList is kalypso.images/v1. Fields are added, not changed.
type imageList struct {
	Schema string       `json:"schema"`
	Images []imageEntry `json:"images"`
}

type imageEntry struct {
	Image      string   `json:"image"`
	Components []string `json:"components"`
	Digest     string   `json:"digest,omitempty"` // with --save
	Bytes      int64    `json:"bytes,omitempty"`  // likewise: of its layers, compressed
}

func newImagesCommand() *cobra.Command {
	f := &renderFlags{}
	var (
		output         cli.Output
		file, platform string
	)
	cmd := &cobra.Command{
		Use:   "images [flags] [COMPONENT…]",
		Short: "every container image of the stack, and who uses it",
		Long: `Print every container image that the objects of the stack name: of containers,
of hooks, and those that operators are told to run.

With --save they are pulled and written into one file, for nodes that have no way
to a registry: docker load, ctr -n k8s.io images import and k3s ctr images import
read it. Needs no Docker; credentials are those of docker login.`,
		Example: `  kalypsoctl images                                   every image, and who uses it
  kalypsoctl images | awk 'NR > 1 { print $1 }'       only the images, for a mirror
  kalypsoctl images --save images.tar                 all of them in one file, for nodes without a registry
  kalypsoctl images -o json                           for a program to read`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.Check(cmd); err != nil {
				return err
			}
			if err := image.CheckPlatform(platform); err != nil {
				return cli.Wrong(err)
			}
			all, err := f.render(cmd, args)
			if err != nil {
				return err
			}
			list, err := listImages(all)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if file != "" {
				if err := list.save(cmd, file, platform, output.Text()); err != nil || output.Text() {
					return err
				}
			}
			if !output.Text() {
				err = output.Write(out, list)
			} else {
				var rows [][]string
				for _, e := range list.Images {
					rows = append(rows, []string{e.Image, strings.Join(e.Components, " ")})
				}
				err = term.For(out, os.Getenv).Table(out, []string{"image", "used by"}, rows)
			}
			if err != nil {
				return fmt.Errorf("print the images: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	output.Register(cmd.Flags())
	cmd.Flags().StringVar(&file, "save", "", "pull them all and write them into `FILE`")
	cmd.Flags().StringVar(&platform, "platform", "linux/"+runtime.GOARCH, "of the nodes that --save is for")
	f.register(cmd.Flags())
	return cmd
}

// save pulls the images and tells of each.
func (l *imageList) save(cmd *cobra.Command, file, platform string, tell bool) error {
	out := io.Discard
	if tell {
		out = cmd.OutOrStdout()
	}
	mark := term.For(out, os.Getenv).Passed()
	var names []string
	width := 0
	for _, e := range l.Images {
		names = append(names, e.Image)
		width = max(width, len(e.Image))
	}
	var sum int64
	var failed error
	i := 0
	err := image.Save(cmd.Context(), file, names, platform, func(s image.Saved) {
		l.Images[i].Digest, l.Images[i].Bytes = s.Digest, s.Bytes
		i++
		sum += s.Bytes
		if _, err := fmt.Fprintf(out, "  %s %-*s  %.19s…  %.1f MiB\n", mark, width, s.Image, s.Digest, float64(s.Bytes)/(1<<20)); failed == nil {
			failed = err
		}
	})
	if err == nil && failed == nil {
		_, failed = fmt.Fprintf(out, "%s for %s in %s, %.0f MiB\n  ctr -n k8s.io images import %s     on each node; K3s: k3s ctr images import\n",
			kube.Count(len(names), "image"), platform, file, float64(sum)/(1<<20), file)
	}
	if err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("print the images: %w", failed)
	}
	return nil
}

// listImages gathers images in the order of their names.
func listImages(all []rendered) (imageList, error) {
	list := imageList{Schema: "kalypso.images/v1", Images: []imageEntry{}}
	users := map[string][]string{}
	for _, r := range all {
		images, err := helm.Images(slices.Concat(r.Objects, r.Hooks))
		if err != nil {
			return list, fmt.Errorf("find the images of %s: %w", r.Name, err)
		}
		for _, name := range images {
			users[name] = append(users[name], r.Name)
		}
	}
	for _, name := range sortedKeys(users) {
		list.Images = append(list.Images, imageEntry{Image: name, Components: users[name]})
	}
	return list, nil
}
