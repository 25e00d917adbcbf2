// Package docs hands out the pages that programs print: those of the checks.
package docs

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed checks/*.md
var pages embed.FS

// Checks are the IDs of the checks that have a page, sorted.
func Checks() []string {
	entries, err := pages.ReadDir("checks")
	if err != nil {
		panic(err) // the folder is embedded
	}
	var ids []string
	for _, e := range entries {
		if id := strings.TrimSuffix(e.Name(), ".md"); id != "README" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Check gives the page of a check.
func Check(id string) (string, error) {
	data, err := pages.ReadFile("checks/" + id + ".md")
	if err != nil {
		return "", fmt.Errorf("read the page of the check %s: %w", id, err)
	}
	return string(data), nil
}
