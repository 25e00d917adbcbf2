package bucket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
)

// servers are how to start those that the test knows, by the name of the binary.
var servers = map[string]func(address, dir string) []string{
	"minio": func(address, dir string) []string {
		return []string{"server", dir, "--address", address, "--console-address", "127.0.0.1:0", "--quiet"}
	},
	"versitygw": func(address, dir string) []string {
		return []string{"--access", user, "--secret", password, "--port", address, "posix", dir}
	},
}

const user, password = "root-user", "root-password"

// TestServer makes buckets in a real server that was started a moment before.
// KALYPSO_S3_SERVER names its binary, MinIO or Versity Gateway.
func TestServer(t *testing.T) {
	binary := os.Getenv("KALYPSO_S3_SERVER")
	if binary == "" {
		t.Skip("KALYPSO_S3_SERVER names no binary of an object store")
	}
	args := servers[filepath.Base(binary)]
	if args == nil {
		t.Fatalf("how to start %s is not known", binary)
	}
	address := freeAddress(t)
	endpoint := "http://" + address
	server := exec.Command(binary, args(address, t.TempDir())...)
	server.Env = append(os.Environ(), "MINIO_ROOT_USER="+user, "MINIO_ROOT_PASSWORD="+password, "HOME="+t.TempDir())
	output, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	server.Stdout, server.Stderr = output, output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill() // it may have ended itself
		_ = server.Wait()
		if log, err := os.ReadFile(output.Name()); t.Failed() && err == nil {
			t.Logf("%s wrote:\n%s", binary, log)
		}
	}()

	ensure := func(name, account, secret string) (bool, error) {
		s, err := Open(Config{Endpoint: endpoint, AccessKey: account, SecretKey: secret})
		if err != nil {
			t.Fatal(err)
		}
		return s.Ensure(t.Context(), name, func(reason error) { t.Logf("waiting: %v", reason) })
	}
	for _, want := range []bool{true, false} {
		for _, name := range []string{"mimir-blocks", "loki-chunks"} {
			if made, err := ensure(name, user, password); made != want || err != nil {
				t.Errorf("bucket %s: made %v, want %v; %v", name, made, want, err)
			}
		}
	}
	for what, key := range map[string][2]string{"an unknown key": {"somebody", password}, "a wrong secret": {user, "something-else"}} {
		_, err := ensure("third", key[0], key[1])
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !strings.Contains(fault.What, "refuses the key "+key[0]) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = ensure("Not_A_Bucket", user, password)
	if err == nil {
		t.Error("a name that no bucket can have is taken")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return fmt.Sprint(l.Addr())
}
