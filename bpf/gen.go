package bpf

// The objects are committed: building Kalypso needs only Go. "make generate"
// sets BPF2GO_CC and BPF2GO_CFLAGS to the pinned compiler and its headers.
//go:generate go tool bpf2go -go-package bpf -target amd64,arm64 -no-global-types kalypso kalypso.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror
//go:generate go tool bpf2go -go-package bpf -target amd64,arm64 -no-global-types threads threads.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror
