// Package docs hands out the pages that programs print: those of the checks.
package docs

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed checks/*.md checks/cluster/*.md
var pages embed.FS

// folders of pages: checks of a machine, and of a cluster.
var folders = [...]string{"checks", "checks/cluster"}

// Checks are the IDs of the checks that have a page, sorted.
func Checks() []string {
	var ids []string
	for _, folder := range folders {
		entries, err := pages.ReadDir(folder)
		if err != nil {
			panic(err) // the folder is embedded
		}
		for _, e := range entries {
			if id, isPage := strings.CutSuffix(e.Name(), ".md"); isPage && id != "README" {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// Check gives the page of a check.
func Check(id string) (string, error) {
	var missing error
	for _, folder := range folders {
		data, err := pages.ReadFile(folder + "/" + id + ".md")
		if err == nil {
			return string(data), nil
		}
		missing = err
	}
	return "", fmt.Errorf("read the page of the check %s: %w", id, missing)
}
