package bpftest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Native is the walker as an ordinary program, built with the address and the
// undefined behaviour sanitizer. What these find ends it, and the test.
type Native struct {
	cmd    *exec.Cmd
	in     *bufio.Writer
	close  func() error
	out    *bufio.Reader
	stderr strings.Builder
}

// StartNative builds the walker for an instruction set from native/walk.c, which
// source is the path of, and starts it. It runs until the test ends.
func StartNative(t testing.TB, source string, arch unwind.Arch) *Native {
	t.Helper()
	define := map[unwind.Arch]string{unwind.AMD64: "__TARGET_ARCH_x86", unwind.ARM64: "__TARGET_ARCH_arm64"}[arch]
	path := filepath.Join(t.TempDir(), "walk")
	build := exec.Command("gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Werror", "-D"+define,
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all",
		"-o", path, source)
	if text, err := build.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && os.Getenv("KALYPSO_REQUIRE_TOOLS") != "1" {
			t.Skip("no gcc to build the walker natively")
		}
		t.Fatalf("build the walker: %v\n%s", err, text)
	}
	// gcc 12's address sanitizer does not start where the kernel randomizes 32 bits
	// of addresses (vm.mmap_rnd_bits): setarch -R turns that off.
	n := &Native{cmd: exec.Command("setarch", "-R", path)}
	n.cmd.Stderr = &n.stderr
	in, err := n.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.in, n.close, n.out = bufio.NewWriterSize(in, 1<<16), in.Close, bufio.NewReaderSize(out, 1<<16)
	t.Cleanup(func() {
		_ = n.close()
		_, _ = io.Copy(io.Discard, n.out)
		if err := n.cmd.Wait(); err != nil {
			t.Errorf("native walker: %v\n%s", err, &n.stderr)
		}
	})
	return n
}

// Walk walks stacks by tables, each where its registers say that it is. Walks
// that share a stack also share its address.
func (n *Native) Walk(t testing.TB, tables *Tables, inputs []Input) []Outcome {
	t.Helper()
	sent := make(chan error, 1)
	go func() { sent <- n.send(tables, inputs) }()
	outcomes := make([]Outcome, len(inputs))
	for i := range outcomes {
		var head struct {
			Stop, Frames uint32
			Hash         uint64
		}
		err := binary.Read(n.out, binary.LittleEndian, &head)
		if err == nil && head.Frames > unwind.MaxFrames {
			err = fmt.Errorf("%d frames", head.Frames)
		}
		if err == nil && head.Frames > 0 {
			outcomes[i].Frames = make([]uint64, head.Frames)
			err = binary.Read(n.out, binary.LittleEndian, outcomes[i].Frames)
		}
		if err != nil {
			_ = n.close()
			_ = n.cmd.Wait()
			t.Fatalf("walk %d of the native walker: %v\n%s", i, err, &n.stderr)
		}
		outcomes[i].Stop, outcomes[i].Hash = head.Stop, head.Hash
	}
	if err := <-sent; err != nil {
		t.Fatalf("give walks to the native walker: %v", err)
	}
	return outcomes
}

func (n *Native) send(tables *Tables, inputs []Input) error {
	b := []byte{'T'}
	sizes := []int{mappingBytes, executableBytes, pageBytes, rowBytes, ruleBytes}
	for i, table := range tables.all() {
		b = appendWords(b, uint32(len(*table)/sizes[i]))
	}
	for _, table := range tables.all() {
		b = append(b, *table...)
	}
	var stack *byte
	for i := range inputs {
		in := &inputs[i]
		// Several walks over one stack travel with it once.
		if len(in.Stack) == 0 || &in.Stack[0] != stack {
			b = append(b, 'S')
			b = binary.LittleEndian.AppendUint64(b, in.Regs.SP-uint64(in.Below))
			b = binary.LittleEndian.AppendUint64(b, uint64(len(in.Stack)))
			b = append(b, in.Stack...)
			stack = nil
			if len(in.Stack) > 0 {
				stack = &in.Stack[0]
			}
		}
		b = append(b, 'W')
		for _, r := range []uint64{in.Regs.PC, in.Regs.SP, in.Regs.FP, in.Regs.LR} {
			b = binary.LittleEndian.AppendUint64(b, r)
		}
		for _, r := range in.Regs.R {
			b = binary.LittleEndian.AppendUint64(b, r)
		}
		b = appendWords(b, in.First, in.Mappings, in.Base)
		b = append(b, bit(in.Exact), bit(in.Leaf), bit(in.Registers), 0)
		if _, err := n.in.Write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	if _, err := n.in.Write(append(b, 'F')); err != nil {
		return err
	}
	return n.in.Flush()
}
