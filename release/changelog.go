package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// changelog writes what changed: what the maintainers wrote for users, and the
// subjects of the commits since the tag before.
func (c config) changelog() error {
	written, err := os.ReadFile(filepath.Join(c.source, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	before, subjects, err := c.commits()
	if err != nil {
		return err
	}
	text := changes(c.number, section(string(written), c.number), before, subjects)
	fmt.Println("  " + filepath.Join(c.out, "CHANGELOG.md"))
	return os.WriteFile(c.file("CHANGELOG.md"), []byte(text), 0o644)
}

// commits are the subjects since the last tag of another version, oldest first, and
// that tag. Where the source has no history there are none.
func (c config) commits() (before string, subjects []string, err error) {
	if _, err := os.Stat(filepath.Join(c.source, ".git")); err != nil {
		return "", nil, nil
	}
	git := func(args ...string) (string, error) {
		cmd := c.command("git", args...)
		cmd.Stderr = nil
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	revisions := "HEAD"
	// That there is no tag is an error to git.
	if before, err = git("describe", "--tags", "--abbrev=0", "--match", "v*", "--exclude", "v"+c.number, "HEAD"); err == nil {
		revisions = before + "..HEAD"
	}
	log, err := git("log", "--no-merges", "--reverse", "--format=%s", revisions)
	if err != nil {
		return before, nil, fmt.Errorf("git log %s: %w", revisions, err)
	}
	return before, strings.FieldsFunc(log, func(r rune) bool { return r == '\n' }), nil
}

// section is the part of CHANGELOG.md about a version, or about what is not
// released yet.
func section(text, version string) string {
	parts := strings.Split(text, "\n## ")[1:]
	for _, title := range []string{version, "Unreleased"} {
		for _, part := range parts {
			heading, body, _ := strings.Cut(part, "\n")
			if first, _, _ := strings.Cut(heading, " "); first == title { // a date may follow
				return strings.TrimSpace(body)
			}
		}
	}
	return ""
}

// changes is the page of a version. Commits are in the order of what they are about, their
// subjects' first word.
func changes(version, written, before string, subjects []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", version)
	if written != "" {
		fmt.Fprintf(&b, "\n%s\n", written)
	}
	if len(subjects) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "\n## %d commits since %s\n", len(subjects), cmp.Or(before, "the beginning"))
	about := map[string][]string{}
	for _, s := range subjects {
		area, what, ok := strings.Cut(s, ": ")
		if !ok || strings.Contains(area, " ") && !strings.Contains(area, ",") {
			area, what = "other", s
		}
		about[area] = append(about[area], what)
	}
	areas := make([]string, 0, len(about))
	for area := range about {
		areas = append(areas, area)
	}
	slices.Sort(areas)
	for _, area := range areas {
		fmt.Fprintf(&b, "\n### %s\n\n", area)
		for _, what := range about[area] {
			fmt.Fprintf(&b, "* %s\n", what)
		}
	}
	return b.String()
}
