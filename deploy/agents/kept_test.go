package agents

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestKeptWaysAreOpenedOnce(t *testing.T) {
	opened, closed := 0, 0
	ended := make(chan struct{})
	k := &Kept{ways: map[types.UID]way{}, open: func(context.Context, *corev1.Pod, int) (way, error) {
		opened++
		return way{fmt.Sprintf("127.0.0.1:%d", opened), ended, func() { closed++ }}, nil
	}}
	p := &corev1.Pod{}
	p.UID = "one"
	reach := func(name, want string, answered bool) {
		t.Helper()
		address, done, err := k.Reach(t.Context(), p, 4041)
		if err != nil || address != want {
			t.Fatalf("%s: %q, %v; want %s", name, address, err, want)
		}
		done(answered)
	}
	reach("the first time", "127.0.0.1:1", true)
	reach("it is open", "127.0.0.1:1", true)
	close(ended)
	ended = make(chan struct{})
	reach("it has ended", "127.0.0.1:2", true)
	p = &corev1.Pod{}
	p.UID = "two"
	reach("another pod", "127.0.0.1:3", true)
	if closed != 0 {
		t.Errorf("%d ways were closed while they are in use", closed)
	}
	reach("without an answer", "127.0.0.1:3", false)
	if closed != 1 {
		t.Errorf("%d ways were closed for want of an answer, want 1", closed)
	}
	reach("after that", "127.0.0.1:4", true)
	if k.Close(); closed != 3 {
		t.Errorf("%d ways were closed in the end, want 3", closed)
	}
}
