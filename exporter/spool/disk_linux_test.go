package spool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
		t.Fatal("KALYPSO_REQUIRE_BPF=1, and this is not root")
	}
	t.Skip("takes root")
}

// mountTmpfs mounts a small file system until the test ends. It skips the test
// where the kernel refuses, outside CI: root in a container may not mount.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	requireRoot(t)
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, options)
	switch {
	case err == nil:
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	case os.Getenv("KALYPSO_REQUIRE_BPF") == "1":
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and mount tmpfs: %v", err)
	default:
		t.Skipf("mount tmpfs: %v", err)
	}
}

// fillUp takes what room a file system has left, and gives back the file that
// took it.
func fillUp(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "somebody else's")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, block)); errors.Is(err, unix.ENOSPC) {
			return name
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Run("filled by the spool itself", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		b, back := switched()
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, MemoryBytes: 100_000, Log: log})
		var samples uint64
		for n := range 40 {
			r := incompressible(n, 20_000)
			samples += r.Samples
			if err := s.Put(r); err != nil {
				t.Fatal(err)
			}
			if st := balance(t, s, nil); st.Memory.Bytes > 100_000 {
				t.Fatalf("over its bound: %+v", st)
			}
		}
		st := balance(t, s, nil)
		if st.Disk.Bytes < 200_000 || st.Memory.Bytes < 60_000 || st.Evicted.Requests == 0 || st.DiskErrors == 0 || !strings.Contains(st.DiskError, "no space") {
			t.Errorf("%+v", st)
		}
		if n, m := text.count("does not work"), text.count("works again"); n != 1 || m != 0 {
			t.Errorf("said %d times that it does not work, %d times that it does", n, m)
		}
		back()
		drain(t, s)
		if diff := cmp.Diff(upTo(40)[40-len(b.taken()):], b.taken()); diff != "" || len(b.taken()) < 14 {
			t.Errorf("not the newest (-want +got)\n%s", diff)
		}
		if st := balance(t, s, b); st.Delivered.Samples+st.Evicted.Samples != samples {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("filled by somebody else, and emptied again", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		b, back := switched()
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, Log: log})
		put(t, s, 0, 1)
		other := fillUp(t, dir)
		put(t, s, 2, 3, 4)
		if st := balance(t, s, b); st.Disk.Requests != 2 || st.Memory.Requests != 3 || st.DiskErrors != 3 {
			t.Errorf("%+v", st)
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
		put(t, s, 5)
		if st := balance(t, s, b); st.Disk.Requests != 6 || st.Memory.Requests != 0 || st.DiskError != "" {
			t.Errorf("%+v", st)
		}
		if n, m := text.count("does not work"), text.count("works again"); n != 1 || m != 1 {
			t.Errorf("said %d times that it does not work, %d times that it does", n, m)
		}
		back()
		drain(t, s)
		if diff := cmp.Diff(upTo(6), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		balance(t, s, b)
	})
	t.Run("full at the start", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		fillUp(t, dir)
		b, back := switched()
		back()
		s := open(t, Config{Sender: b, Dir: filepath.Join(dir, "spool")})
		samples := put(t, s, 0, 1)
		drain(t, s)
		if st := balance(t, s, b); st.Delivered.Samples != samples {
			t.Errorf("%+v", st)
		}
	})
	t.Run("a refused request goes where there is room", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{}, &exporter.RefusedError{Err: errors.New("no")}
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		fillUp(t, dir)
		put(t, s, 0, 1)
		drain(t, s)
		if st := balance(t, s, nil); st.Refused.Requests != 2 {
			t.Errorf("%+v", st)
		}
		if left := spoolFiles(t, dir); len(left) > 0 {
			t.Errorf("would be sent again: %v", left)
		}
	})
}

func TestReadOnlyDisk(t *testing.T) {
	remount := func(t *testing.T, dir string, flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, "size=256k"); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("from some moment on", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1)
		remount(t, dir, unix.MS_RDONLY)
		put(t, s, 2)
		if st := balance(t, s, b); st.Disk.Requests != 2 || st.Memory.Requests != 1 || !strings.Contains(st.DiskError, "read-only") {
			t.Errorf("%+v", st)
		}
		back()
		run(t, s)
		until(t, "all is sent", func() bool { return s.Stats().Delivered.Requests == 3 })
		until(t, "what cannot be removed is known", func() bool { return s.Stats().LeftoverFiles == 2 })
		if got := spoolFiles(t, dir); len(got) != 2 {
			t.Errorf("in the folder: %v", got)
		}
		remount(t, dir, 0)
		put(t, s, 3)
		until(t, "all is sent", func() bool { return s.Stats().Delivered.Requests == 4 })
		drain(t, s)
		if st := balance(t, s, b); st.LeftoverFiles != 0 || st.DiskError != "" {
			t.Errorf("%+v", st)
		}
		if diff := cmp.Diff(upTo(4), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("from some moment on until the end", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		b, _ := switched()
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, Log: log})
		put(t, s, 0, 1)
		remount(t, dir, unix.MS_RDONLY)
		lost := put(t, s, 2)
		if err := s.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "1002 samples in 1 requests") {
			t.Errorf("got %v", err)
		}
		if st := balance(t, s, b); st.Lost != (Count{1, lost}) || st.Evicted.Requests != 0 || st.Disk.Requests != 2 {
			t.Errorf("%+v", st)
		}
		if n, m := text.count("no folder took them"), text.count("no room in the spool"); n != 1 || m != 0 {
			t.Errorf("said %d times what is lost, and %d times that there is no room", n, m)
		}
	})
	t.Run("at the start", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=256k")
		spool := filepath.Join(dir, "spool")
		leave(t, spool, 0, 1)
		remount(t, dir, unix.MS_RDONLY)
		for _, where := range []string{spool, filepath.Join(dir, "new")} {
			b, back := switched()
			back()
			s := open(t, Config{Sender: b, Dir: where})
			put(t, s, 2)
			drain(t, s)
			want := []int{0, 1, 2}
			if where != spool {
				want = []int{2}
			}
			if diff := cmp.Diff(want, b.taken()); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", where, diff)
			}
			balance(t, s, b)
		}
	})
}

func TestFolderThatVanishes(t *testing.T) {
	t.Run("removed", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		put(t, s, 2, 3)
		if st := balance(t, s, b); st.Memory.Requests != 0 || len(spoolFiles(t, dir)) != 2 {
			t.Errorf("not made anew: %+v", st)
		}
		back()
		drain(t, s)
		if diff := cmp.Diff([]int{2, 3}, b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if st := balance(t, s, b); st.Unreadable != (Count{2, 2001}) {
			t.Errorf("%+v", st)
		}
	})
	t.Run("moved away, and back", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		elsewhere := dir + ".elsewhere"
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1)
		if err := os.Rename(dir, elsewhere); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, s, 2, 3)
		if st := balance(t, s, b); st.Disk.Requests != 2 || st.Memory.Requests != 2 || st.DiskErrors == 0 {
			t.Errorf("%+v", st)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(elsewhere, dir); err != nil {
			t.Fatal(err)
		}
		put(t, s, 4)
		if st := balance(t, s, b); st.Disk.Requests != 5 || st.Memory.Requests != 0 || st.Recovered.Requests != 0 {
			t.Errorf("%+v", st)
		}
		back()
		drain(t, s)
		if diff := cmp.Diff(upTo(5), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		balance(t, s, b)
	})
	t.Run("what is in memory is sent while it is away", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0)
		if err := os.Rename(dir, dir+".elsewhere"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, s, 1)
		back()
		drain(t, s)
		if diff := cmp.Diff([]int{1}, b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if st := balance(t, s, b); st.Disk.Requests != 1 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("replaced by one that another agent uses", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		b, _ := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		if err := os.Rename(dir, dir+".elsewhere"); err != nil {
			t.Fatal(err)
		}
		open(t, Config{Sender: &backend{}, Dir: dir})
		put(t, s, 0)
		if st := balance(t, s, b); st.Memory.Requests != 1 || !strings.Contains(st.DiskError, errHeld.Error()) || len(spoolFiles(t, dir)) != 0 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("under another file system", func(t *testing.T) {
		dir := t.TempDir()
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0)
		mountTmpfs(t, dir, "size=256k")
		put(t, s, 1)
		if got := spoolFiles(t, dir); len(got) != 1 {
			t.Errorf("in the file system mounted there: %v", got)
		}
		back()
		drain(t, s)
		if st := balance(t, s, b); st.Delivered != (Count{1, 1001}) || st.Unreadable != (Count{1, 1000}) {
			t.Errorf("%+v", st)
		}
	})
}
