package cfi

import "testing"

func TestIsPadding(t *testing.T) {
	tests := []struct {
		name string
		code string
		arch *arch
		want bool
	}{
		{"one-byte nops", "\x90\x90\x90", &x8664, true},
		{"traps and zeros", "\xcc\xcc\x00\x00", &x8664, true},
		{"long nops", "\x66\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00\x0f\x1f\x40\x00", &x8664, true},
		{"two-byte nop", "\x66\x90", &x8664, true},
		{"nops of 5, 6 and 7 bytes", "\x0f\x1f\x44\x00\x00\x66\x0f\x1f\x44\x00\x00\x0f\x1f\x80\x00\x00\x00\x00", &x8664, true},
		{"cut nop", "\x0f\x1f\x44\x00", &x8664, false},
		{"prefix alone", "\x66", &x8664, false},
		{"ret", "\xc3\x90\x90", &x8664, false},
		{"jump behind a nop", "\x90\xeb\x01", &x8664, false},
		{"endbr64", "\xf3\x0f\x1e\xfa", &x8664, false},
		{"nothing", "", &x8664, false},
		{"aarch64 nops", "\x1f\x20\x03\xd5\x00\x00\x00\x00", &aarch64, true},
		{"aarch64 ret", "\xc0\x03\x5f\xd6", &aarch64, false},
		{"aarch64 odd size", "\x1f\x20\x03\xd5\x00", &aarch64, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := isPadding([]byte(tt.code), tt.arch); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
