package bpftest

//go:generate go tool bpf2go -go-package bpftest -target amd64,arm64 -type klp_walk -type klp_call -type klp_copy functions functions.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror
