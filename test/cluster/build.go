package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// keep is how long binaries of other contents stay in the cache after they were
// last used.
const keep = 14 * 24 * time.Hour

// Build gives the folder of the binaries, after compiling them if those of the
// same source are not in the user's cache: once 5 to 8 minutes on two cores,
// 4 GiB in Go's own cache and 220 MB in ours.
func Build(ctx context.Context, log func(string, ...any)) (string, error) {
	if dir := os.Getenv(Variable); filepath.IsAbs(dir) {
		_, err := os.Stat(filepath.Join(dir, "kubectl"))
		return dir, err
	}
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build the test cluster: %w", err)
	}
	cache = filepath.Join(cache, "kalypso", "test-cluster")
	sum, err := sumOf(source)
	if err != nil {
		return "", fmt.Errorf("build the test cluster: %w", err)
	}
	dir := filepath.Join(cache, sum)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("build the test cluster: %w", err)
	}
	unlock, err := lock(cache)
	if err != nil {
		return "", fmt.Errorf("build the test cluster: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		return dir, os.Chtimes(dir, now, now)
	}
	log("building Kubernetes for tests in %s, once: minutes", dir)
	began := time.Now()
	if err := build(ctx, source, dir); err != nil {
		return "", fmt.Errorf("build the test cluster: %w", err)
	}
	log("built in %.0f s", time.Since(began).Seconds())
	return dir, removeOld(cache, sum)
}

// sourceDir is where the module of the binaries is: beside this package, which the
// working directory leads to.
func sourceDir() (string, error) {
	out, err := exec.Command("go", "list", "-find", "-f", "{{.Dir}}", "github.com/kalypso-dev/kalypso/test/cluster").Output()
	if err != nil {
		return "", fmt.Errorf("find test/cluster: %w: %s", err, stderrOf(err))
	}
	return filepath.Join(strings.TrimSpace(string(out)), "kubernetes"), nil
}

// sumOf names the binaries by everything that goes into them.
func sumOf(source string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path[len(source):], len(data), data)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), err
}

// build compiles into a folder of another name, so that what is under the right
// name is complete.
func build(ctx context.Context, source, dir string) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := os.Mkdir(part, 0o755); err != nil {
		return err
	}
	version, err := run(ctx, source, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	version = strings.TrimSpace(version)
	numbers := strings.Split(strings.TrimPrefix(version, "v"), ".")
	// Left out, the server calls itself v0.0.0-master and charts refuse it.
	const x = "-X k8s.io/component-base/version."
	flags := "-s -w " + x + "gitVersion=" + version + " " + x + "gitMajor=" + numbers[0] + " " + x + "gitMinor=" + numbers[1] +
		" " + x + "gitCommit=test " + x + "gitTreeState=clean"
	_, err = run(ctx, source, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", part+"/", "./...")
	if err != nil {
		return err
	}
	if err := os.Symlink("kubernetes", filepath.Join(part, "kubectl")); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// run runs a go command in a folder, with nothing of the caller's module in its
// way.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off", "GOOS=", "GOARCH=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, &stderr)
	}
	return string(out), nil
}

func removeOld(cache, sum string) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.Name() == sum || time.Since(info.ModTime()) < keep {
			continue
		}
		if err := os.RemoveAll(filepath.Join(cache, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// lock takes the exclusive lock of a folder; one process after the other.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
