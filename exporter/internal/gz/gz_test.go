package gz

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
)

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	parts := [][]byte{[]byte(strings.Repeat("stack ", 20_000)), nil, []byte("end")}
	var group sync.WaitGroup
	for range 8 { // writers are shared
		group.Go(func() {
			var file bytes.Buffer
			if err := Write(&file, Fast, parts...); err != nil {
				t.Error(err)
				return
			}
			r, err := gzip.NewReader(&file)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, bytes.Join(parts, nil)) {
				t.Errorf("got %d bytes, error %v; want the parts", len(got), err)
			}
		})
	}
	group.Wait()
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAWriterThatFailedIsNotLeftBroken(t *testing.T) {
	if err := Write(full{}, Small, []byte("x")); err == nil {
		t.Fatal("a full disk was not noticed")
	}
	var file bytes.Buffer
	if err := Write(&file, Small, []byte("x")); err != nil {
		t.Fatal(err)
	}
}
