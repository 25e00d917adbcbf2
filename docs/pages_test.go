package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root of the repository.
const root = ".."

// Every message of the troubleshooting page is one that a program prints.
func TestMessagesAreInTheSource(t *testing.T) {
	page, err := os.ReadFile("troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	source := sources(t)
	rows := regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllSubmatch(page, -1)
	if len(rows) < 30 {
		t.Errorf("the page has %d messages", len(rows))
	}
	for _, row := range rows {
		for _, message := range regexp.MustCompile("`([^`]+)`").FindAllSubmatch(row[1], -1) {
			for part := range strings.SplitSeq(string(message[1]), "…") {
				part = strings.Trim(part, " :")
				if strings.Contains(part, "+0x") || part == "" { // an example of one
					continue
				}
				if !strings.Contains(source, part) {
					t.Errorf("nothing says %q", part)
				}
			}
		}
	}
}

// sources are all Go files but tests, as one text.
func sources(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, folder := range []string{"bpf", "cmd", "deploy", "exporter", "profiler"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			b.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// A link to a file of the repository leads to one, and to a heading that it has.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, folder := range []string{"docs", "test", "LICENSES", "."} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.IsDir() && folder == "." && path != root {
				return filepath.SkipDir
			}
			if e.IsDir() || !strings.HasSuffix(path, ".md") {
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range link.FindAllStringSubmatch(string(text), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				file, anchor, _ := strings.Cut(m[1], "#")
				to := path
				if file != "" {
					to = filepath.Join(filepath.Dir(path), file)
				}
				target, err := os.ReadFile(to)
				if info, gone := os.Stat(to); gone == nil && info.IsDir() {
					continue
				}
				if err != nil {
					t.Errorf("%s: %s: %v", path, m[1], err)
				} else if anchor != "" && !hasHeading(string(target), anchor) {
					t.Errorf("%s: %s has no heading #%s", path, to, anchor)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// hasHeading says whether a page has a heading of this anchor, as GitHub makes
// them.
func hasHeading(page, anchor string) bool {
	for line := range strings.Lines(page) {
		text, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if ok && strings.HasPrefix(line, "#") && strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(text)), ""), " ", "-") == anchor {
			return true
		}
	}
	return false
}

// The tree of architecture.md has every folder of packages, two deep.
func TestTreeIsWhole(t *testing.T) {
	page, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, tree, _ := strings.Cut(string(page), "## The tree\n")
	tree, _, _ = strings.Cut(tree, "\n## ")
	for _, pattern := range []string{"*/*.go", "*/*/*.go", "*/internal/*/*.go", "*/*/internal/*/*.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files are %s: %v", pattern, err)
		}
		for _, file := range files {
			if folder := filepath.Base(filepath.Dir(file)); !regexp.MustCompile(`(?m)(^|[ /(,;])` + folder + `/`).MatchString(tree) {
				t.Errorf("the tree does not have %s", filepath.Dir(file))
			}
		}
	}
}
