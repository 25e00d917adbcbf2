//go:build cgo && withcgo

package main

// int kalypso_test_add(int a) { return a + 1; }
import "C"

func init() { sink += int(C.kalypso_test_add(1)) }
