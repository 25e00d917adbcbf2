package input

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("settings"), []byte("frequency: 97\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("settings", at("link")); err != nil { // as ConfigMaps are mounted
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tests := []struct {
		name, path string
		limit      int64
		want, err  string
	}{
		{"a file", at("settings"), 14, "frequency: 97\n", ""},
		{"a link to a file", at("link"), 14, "frequency: 97\n", ""},
		{"a file above the limit", at("settings"), 13, "", "it has more than 13 bytes"},
		{"no file", at("missing"), 14, "", "no such file or directory"},
		{"a folder", dir, 14, "", "is a directory"},
		{"a pipe that nobody writes to is not waited for", at("pipe"), 14, "", "it is no regular file"},
		{"a device without an end", "/dev/zero", 14, "", "it is no regular file"},
		{"a socket", at("socket"), 14, "", "no such device or address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data, err := Read(tt.path, tt.limit)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if string(data) != tt.want || text != tt.err {
				t.Errorf("got %q, %q; want %q, %q", data, text, tt.want, tt.err)
			}
		})
	}
}
