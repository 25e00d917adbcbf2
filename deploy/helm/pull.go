package helm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/repo"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/profiler"
)

// requestLimit is for one file. The index of the largest repository has 5 MiB.
const requestLimit = 2 * time.Minute

// Pulled is a packaged chart that a folder has.
type Pulled struct {
	Dependency
	SHA256 string
	Bytes  int64
	Kept   bool // it was there
}

// Pull fills a folder with packaged charts and pins each to the SHA-256 that it
// has the first time. each is told of every chart as it is there. What is there
// and pinned is not asked for again.
func Pull(ctx context.Context, charts []Dependency, dir string, each func(Pulled)) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &profiler.Fault{What: "cannot write to " + dir, Why: withoutPath(err), Fix: "-d DIR names another folder"}
	}
	a, err := OpenArchives(dir)
	if err != nil {
		return err
	}
	p := puller{Archives: a, client: &http.Client{Timeout: requestLimit}, indexes: map[string]*repo.IndexFile{}}
	for _, d := range charts {
		pulled, err := p.pull(ctx, d)
		if err != nil {
			return err
		}
		each(pulled)
	}
	return nil
}

type puller struct {
	*Archives
	client  *http.Client
	indexes map[string]*repo.IndexFile // by the repository's URL
}

// pull gets one chart, or finds that it is there.
func (p *puller) pull(ctx context.Context, d Dependency) (Pulled, error) {
	path := filepath.Join(p.dir, d.file())
	pinned := p.lock.find(d)
	if data, err := readLimited(path); err == nil && pinned != "" {
		if digest(data) != pinned {
			return Pulled{}, changed(path, pinned, digest(data))
		}
		return Pulled{d, pinned, int64(len(data)), true}, nil
	}
	data, err := p.download(ctx, d)
	if err != nil {
		return Pulled{}, err
	}
	sum := digest(data)
	if pinned != "" && pinned != sum {
		return Pulled{}, changed(d.String()+" of "+d.Repository, pinned, sum)
	}
	if pinned == "" {
		p.lock.Charts = append(p.lock.Charts, pin{d, sum})
	}
	// The pin first: a chart without one would be believed.
	err = p.writeLock()
	if err == nil {
		err = writeFile(path, data)
	}
	if err != nil {
		return Pulled{}, &profiler.Fault{What: "cannot write " + path, Why: withoutPath(err), Fix: "free some space there, or -d DIR names another folder"}
	}
	return Pulled{d, sum, int64(len(data)), false}, nil
}

const lockHead = "# Written by kalypsoctl charts pull: a chart with another SHA-256 is refused.\n"

func (p *puller) writeLock() error {
	slices.SortFunc(p.lock.Charts, func(a, b pin) int { return strings.Compare(a.file(), b.file()) })
	data, err := yaml.Marshal(p.lock)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(p.dir, LockFile), append([]byte(lockHead), data...))
}

// writeFile writes a file that appears whole or not at all.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".kalypso-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone once it is renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// download gets a chart from its repository. What the index says of its digest
// must be true.
func (p *puller) download(ctx context.Context, d Dependency) ([]byte, error) {
	index, err := p.index(ctx, d.Repository)
	if err != nil {
		return nil, err
	}
	entry, err := index.Get(d.Name, d.Version)
	if err == nil && len(entry.URLs) == 0 {
		err = errors.New("its entry in the index has no URL")
	}
	if err != nil {
		return nil, &profiler.Fault{What: fmt.Sprintf("chart %s is not in %s", d, d.Repository), Why: err, Fix: "the repository may have dropped it: bring " + d.file() + " from elsewhere, and --charts DIR", Kind: ErrNoChart}
	}
	address, err := repo.ResolveReferenceURL(d.Repository, entry.URLs[0])
	if err != nil {
		return nil, fmt.Errorf("read the address of %s: %w", d, err)
	}
	data, err := p.get(ctx, address)
	if err != nil {
		return nil, err
	}
	if want := strings.TrimPrefix(entry.Digest, "sha256:"); want != "" && want != digest(data) {
		return nil, &profiler.Fault{
			What: address + " is not the chart that its repository tells of",
			Why:  fmt.Errorf("its SHA-256 is %s, the index has %s", short(digest(data)), short(want)),
			Fix:  "try again; a proxy between here and there may have changed or cut it",
			Kind: ErrChartChanged,
		}
	}
	return data, nil
}

// index gets what a repository has, once.
func (p *puller) index(ctx context.Context, repository string) (*repo.IndexFile, error) {
	if index := p.indexes[repository]; index != nil {
		return index, nil
	}
	address := strings.TrimSuffix(repository, "/") + "/index.yaml"
	data, err := p.get(ctx, address)
	if err != nil {
		return nil, err
	}
	index, err := parseIndex(data)
	if err != nil {
		return nil, &profiler.Fault{What: address + " is not the index of a chart repository", Why: tidy(err), Fix: "open it in a browser: a proxy may answer in its place", Kind: ErrNoChart}
	}
	p.indexes[repository] = index
	return index, nil
}

// parseIndex reads an index, which Helm does from files only.
func parseIndex(data []byte) (*repo.IndexFile, error) {
	f, err := os.CreateTemp("", "kalypso-index-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return repo.LoadIndexFile(f.Name())
}

func (p *puller) get(ctx context.Context, address string) ([]byte, error) {
	data, err := p.request(ctx, address)
	if err == nil || ctx.Err() != nil {
		return data, err
	}
	return nil, &profiler.Fault{What: "cannot download " + address, Why: withoutURL(err),
		Fix: "is there a way to the internet (HTTPS_PROXY)? Without one:  kalypsoctl charts pull -d DIR  elsewhere, bring DIR, then  --charts DIR", Kind: ErrNoChart}
}

func (p *puller) request(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "kalypsoctl")
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection can be used again
		return nil, errors.New("the answer is " + resp.Status)
	}
	return limited(resp.Body)
}

// withoutURL drops the address from an error of the client: the message around
// it has it. What took too long is said in words.
func withoutURL(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("there is no whole answer after %s", requestLimit)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
