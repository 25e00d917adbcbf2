package cluster

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// root is the folder that the folders of all clusters are in. It is there while
// one runs; its lock guards it and the list of folders that were made on the
// machine.
func root() string { return filepath.Join(os.TempDir(), "kalypso-test-cluster") }

// onNode are the folders of a node that what runs on it shares. In each place they
// are bind mounts, which need a folder on the machine to be mounted on.
var onNode = []string{
	"/run", "/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/var/log/containers", "/etc/cni/net.d", "/etc/kubernetes",
}

// volumes is where the controller manager's provisioner puts volumes.
const volumes = "/tmp/hostpath_pv"

// folders are those that each place has to itself.
func (c *Cluster) folders() []string { return slices.Concat(onNode, c.options.Folders) }

// makeState makes the folder of a cluster, and those of others that the machine
// does not have. The guard of the last cluster removes these.
func makeState(name string, others []string) (string, error) {
	for {
		if err := os.MkdirAll(root(), 0o755); err != nil {
			return "", err
		}
		unlock, err := lock(root())
		if errors.Is(err, os.ErrNotExist) {
			continue // the guard of the last cluster was quicker
		}
		if err != nil {
			return "", err
		}
		defer unlock()
		state, err := os.MkdirTemp(root(), "kalypso-"+name+"-")
		if errors.Is(err, os.ErrNotExist) {
			unlock()
			continue
		}
		if err != nil {
			return "", err
		}
		for _, dir := range []string{"logs", "pki", "volumes"} {
			if err := os.Mkdir(filepath.Join(state, dir), 0o755); err != nil {
				return "", err
			}
		}
		return state, makeFolders(append(others, volumes))
	}
}

// makeFolders makes folders that are missing and adds each to the list of what was
// made, parents first.
func makeFolders(folders []string) error {
	list, err := os.OpenFile(filepath.Join(root(), "made"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer list.Close()
	for _, folder := range folders {
		for i := range folder {
			part := folder[:i]
			if i+1 == len(folder) {
				part = folder
			} else if i == 0 || folder[i] != '/' {
				continue
			}
			err := os.Mkdir(part, 0o755)
			if errors.Is(err, os.ErrExist) {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(list, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// guard is the process that ends a cluster: when it is told to, or when the
// process that started it is gone.
type guard struct {
	cmd    *exec.Cmd
	hold   io.Closer // while it is open, the cluster lives
	stderr bytes.Buffer
}

//go:embed guard.sh
var guardScript string

func startGuard(state string, groups []hierarchy) (*guard, error) {
	args := []string{"-u", "-c", guardScript, "guard", state}
	for _, g := range groups { // the first is the one that every process is in
		args = append(args, filepath.Join(g.path, filepath.Base(state)))
	}
	g := &guard{cmd: exec.Command("sh", args...)}
	// A session of its own: Ctrl-C in the terminal is for the owner.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.cmd.Stderr = &g.stderr
	var err error
	if g.hold, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return g, g.cmd.Start()
}

// release lets the guard do its work and waits for it.
func (g *guard) release() error {
	g.hold.Close()
	timer := time.AfterFunc(time.Minute, func() { g.cmd.Process.Kill() })
	defer timer.Stop()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(g.stderr.String()))
	}
	return nil
}
