package helm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/profiler"
)

// archiveLimit is far over any packaged chart; the largest of ours, Mimir's
// and Loki's, take under 1 MiB.
const archiveLimit = 32 << 20

// LockFile is the name of the file beside packaged charts that pins them.
const LockFile = "charts.lock"

// Kinds of faults, for those who decide on them.
var (
	ErrNoChart      = errors.New("an upstream chart cannot be had")
	ErrChartChanged = errors.New("an upstream chart is not what it should be")
)

// Dependency is an upstream chart that one of ours needs.
type Dependency struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	Repository string `json:"repository"`
}

// file is the name of the packaged chart, as helm package makes it.
func (d Dependency) file() string { return d.Name + "-" + d.Version + ".tgz" }

// String is how a message names the chart.
func (d Dependency) String() string { return d.Name + " " + d.Version }

// lock pins packaged charts by their SHA-256.
type lock struct {
	Charts []pin `json:"charts"`
}

type pin struct {
	Dependency
	SHA256 string `json:"sha256"`
}

// find gives the digest that a chart is pinned to, or "".
func (l *lock) find(d Dependency) string {
	for _, p := range l.Charts {
		if p.Name == d.Name && p.Version == d.Version {
			return p.SHA256
		}
	}
	return ""
}

// Archives is a folder of packaged charts; nil is one that is not there.
type Archives struct {
	dir  string
	lock lock
}

// OpenArchives opens a folder of packaged charts. A file charts.lock in it pins
// them; without one they are taken as they are.
func OpenArchives(dir string) (*Archives, error) {
	a := &Archives{dir: dir}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("it is not a folder")
	}
	if err != nil {
		return nil, &profiler.Fault{What: "cannot read packaged charts in " + dir, Why: withoutPath(err), Fix: "kalypsoctl charts pull -d " + dir, Kind: ErrNoChart}
	}
	data, err := os.ReadFile(filepath.Join(dir, LockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		err = yaml.UnmarshalStrict(data, &a.lock)
	}
	if err != nil {
		return nil, &profiler.Fault{What: "cannot read " + filepath.Join(dir, LockFile), Why: withoutPath(err), Fix: "restore the file; charts are not used without knowing what they were pinned to", Kind: ErrChartChanged}
	}
	return a, nil
}

// NoArchives says that the folder is not there.
func NoArchives() *profiler.Fault {
	return &profiler.Fault{What: "the upstream charts are not on this machine", Fix: "kalypsoctl charts pull     or, with charts from elsewhere,  --charts DIR", Kind: ErrNoChart}
}

// Packaged says whether a folder has a file of a chart, whatever is in it.
func Packaged(dir string, d Dependency) bool {
	_, err := os.Stat(filepath.Join(dir, d.file()))
	return err == nil
}

// load reads a chart, which must be what the lock says.
func (a *Archives) load(d Dependency) (*chart.Chart, error) {
	if a == nil {
		return nil, NoArchives()
	}
	path := filepath.Join(a.dir, d.file())
	data, err := readLimited(path)
	if err != nil {
		return nil, a.missing(d, err)
	}
	if want := a.lock.find(d); want != "" && want != digest(data) {
		return nil, changed(path, want, digest(data))
	}
	c, err := loader.LoadArchive(bytes.NewReader(data))
	if err == nil && (c.Name() != d.Name || c.Metadata.Version != d.Version) {
		err = fmt.Errorf("it holds the chart %s %s", c.Name(), c.Metadata.Version)
	}
	if err != nil {
		return nil, &profiler.Fault{What: path + " is not the chart " + d.String(), Why: err, Fix: "delete the file, then  kalypsoctl charts pull -d " + a.dir, Kind: ErrChartChanged}
	}
	return c, nil
}

// missing says that a chart is not there, and which other version is.
func (a *Archives) missing(d Dependency, err error) error {
	f := &profiler.Fault{What: fmt.Sprintf("chart %s is not in %s", d, a.dir), Fix: "kalypsoctl charts pull -d " + a.dir, Kind: ErrNoChart}
	if !errors.Is(err, fs.ErrNotExist) {
		f.Why = withoutPath(err)
		return f
	}
	entries, _ := os.ReadDir(a.dir)
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), d.Name+"-")
		version, isArchive := strings.CutSuffix(rest, ".tgz")
		if ok && isArchive && strings.Trim(version, "v0123456789.") == "" {
			f.Why = fmt.Errorf("%s is, and this kalypsoctl goes with %s", e.Name(), d.Version)
		}
	}
	return f
}

// changed says that an archive is not the one that was pinned.
func changed(what, pinned, found string) error {
	return &profiler.Fault{
		What: what + " is not the chart that was pinned",
		Why:  fmt.Errorf("its SHA-256 is %s, %s has %s", short(found), LockFile, short(pinned)),
		Fix:  "ask the chart's authors why it changed; to accept it, take its entry out of " + LockFile,
		Kind: ErrChartChanged,
	}
}

func short(digest string) string {
	if len(digest) > 12 {
		return digest[:12] + "…"
	}
	return digest
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	return limited(f)
}

// limited reads all of r, if that is not too much.
func limited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, archiveLimit+1))
	if err == nil && len(data) > archiveLimit {
		err = fmt.Errorf("it has more than %d bytes", archiveLimit)
	}
	return data, err
}

// withoutPath drops the path from an error of the file system: the message
// around it has it.
func withoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
