package elffile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWalkLikeOpenat2 compares the resolver for kernels without openat2 with
// the kernel's own.
func TestWalkLikeOpenat2(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	for _, d := range []string{"a/b/c", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"root/a/b/c/file", "root/etc/passwd", "secret"} {
		if err := os.WriteFile(filepath.Join(outside, f), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"a/up": "../../../../../../etc/passwd", "a/abs": "/etc/passwd", "a/out": "../../secret", "a/dir": "b/c",
		"a/loop1": "loop2", "a/loop2": "loop1", "a/twice": "abs", "a/none": "/nowhere",
		"a/real": outside + "/secret", "a/self": ".", "a/root": "/",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dir) }()
	content := func(fd int, err error) string {
		if err != nil {
			return fmt.Sprint("error: ", err)
		}
		f, err := reopen(fd, "x")
		if err != nil {
			return "not a file"
		}
		defer func() { _ = f.Close() }()
		data, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, path := range []string{
		"a/b/c/file", "a/b/../b/./c//file", "etc/passwd", "../../etc/passwd", "a/up", "a/abs", "a/out", "a/dir/file",
		"a/dir/../b", "a/loop1", "a/twice", "a/none", "a/real", "a/self/self/abs", "a/root/etc/passwd", "a/b/c/file/x",
		"nowhere", "a/nowhere/../abs", "secret", "../secret",
	} {
		for _, follow := range []bool{true, false} {
			flags := unix.O_PATH | unix.O_CLOEXEC
			if !follow {
				flags |= unix.O_NOFOLLOW
			}
			fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT})
			want := content(fd, err)
			if !follow && want == "not a file" {
				want = "error: " + unix.ELOOP.Error() // walk says it at once
			}
			fd, err = walk(dir, path, follow)
			got := content(fd, err)
			if !follow && got == "not a file" {
				got = "error: " + unix.ELOOP.Error()
			}
			if got != want {
				t.Errorf("walk(%s, follow %v) = %s, openat2 gives %s", path, follow, got, want)
			}
			if strings.Contains(got, "secret") {
				t.Errorf("walk(%s) left the root", path)
			}
		}
	}
}

// FuzzUnxz decompresses hostile .gnu_debugdata. The seeds are what
// `printf abc | xz` gives, whole and cut.
func FuzzUnxz(f *testing.F) {
	seed, err := hex.DecodeString("fd377a585a000004e6d6b4460200210116000000742fe5a3010002616263000" +
		"02776271a4a09d82c00011b030b2fb9101fb6f37d010000000004595a")
	if err != nil {
		f.Fatal(err)
	}
	if got, err := unxz(seed, 100); err != nil || string(got) != "abc" {
		f.Fatalf("unxz(seed) = %q, %v", got, err)
	}
	f.Add(seed)
	f.Add(seed[:30])
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := unxz(data, 1<<16); err == nil && len(out) > 1<<16 {
			t.Fatalf("%d bytes out", len(out))
		}
	})
}

// FuzzStubs feeds the two PLT readers.
func FuzzStubs(f *testing.F) {
	f.Add([]byte{0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 1, 2, 3, 4, 0, 0, 0, 0, 0}, uint64(0x1000))
	f.Add([]byte{0x10, 0, 0, 0x90, 0x11, 2, 0x40, 0xf9}, uint64(0x1000))
	f.Fuzz(func(t *testing.T, code []byte, addr uint64) {
		for _, stubs := range [][]stub{stubsX86(code, addr, true), stubsX86(code, addr, false), stubsARM64(code, addr)} {
			if len(stubs) > len(code)/4 {
				t.Fatalf("%d stubs in %d bytes", len(stubs), len(code))
			}
		}
	})
}

func TestStubsARM64(t *testing.T) {
	// adrp x16, 0x1f000 from 0x10620; ldr x17, [x16, #0xfb8]; add; br
	words := []uint32{0xd503245f, 0xf0000070, 0xf947de11, 0x913ee210, 0xd61f0220, 0xd503201f}
	var code bytes.Buffer
	if err := binary.Write(&code, binary.LittleEndian, words); err != nil {
		t.Fatal(err)
	}
	got := stubsARM64(code.Bytes(), 0x10620)
	want := stub{addr: 0x10620, size: 24, got: 0x1ffb8, push: -1}
	if len(got) != 1 || got[0] != want {
		t.Errorf("stubsARM64 = %+v, want %+v", got, want)
	}
}
