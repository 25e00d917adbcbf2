package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// imageList is kalypso.images/v1. Fields are added, not changed.
type imageList struct {
	Schema string       `json:"schema"`
	Images []imageEntry `json:"images"`
}

type imageEntry struct {
	Image      string   `json:"image"`
	Components []string `json:"components"`
}

func newImagesCommand() *cobra.Command {
	f := &renderFlags{}
	var output cli.Output
	cmd := &cobra.Command{
		Use:   "images [flags] [COMPONENT…]",
		Short: "every container image of the stack, and who uses it",
		Long: `Print every container image that the objects of the stack name: of containers,
of hooks, and those that operators are told to run.`,
		Example: `  kalypsoctl images                                   every image, and who uses it
  kalypsoctl images | awk 'NR > 1 { print $1 }'       only the images, for a mirror
  kalypsoctl images -o json                           for a program to read`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.Check(cmd); err != nil {
				return err
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
	f.register(cmd.Flags())
	return cmd
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
		for _, image := range images {
			users[image] = append(users[image], r.Name)
		}
	}
	for _, image := range sortedKeys(users) {
		list.Images = append(list.Images, imageEntry{image, users[image]})
	}
	return list, nil
}
