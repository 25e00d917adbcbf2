package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// namespace is what signatures are made for: ssh-keygen wants one of who signs and
// of who verifies, so that a signature cannot be shown for something else.
const namespace = "file"

// signature signs the checksums, and with them every file, by a key of SSH: who
// verifies has ssh-keygen already, and the key may lie in an agent or in hardware.
// Signatures of Ed25519 keys are the same bytes each time.
func (c config) signature() error {
	if c.key == "" {
		fmt.Fprintf(os.Stderr, "warning: %s is not signed\nfix:     RELEASEFLAGS='-sign KEY' signs it, KEY is a file of ssh-keygen: the private key, or the public one if an agent has the other\n", sumsFile)
		return nil
	}
	sign := exec.Command("ssh-keygen", "-q", "-Y", "sign", "-f", c.key, "-n", namespace, c.file(sumsFile))
	sign.Stdin, sign.Stderr = os.Stdin, os.Stderr // it may ask for a passphrase
	if err := sign.Run(); err != nil {
		return fmt.Errorf("ssh-keygen: %w", err)
	}
	fmt.Println("  " + filepath.Join(c.out, signatureFile))
	return nil
}

const signatureFile = sumsFile + ".sig"
