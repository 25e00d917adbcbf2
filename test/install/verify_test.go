package install

import "testing"

// Pods that are ready by decree answer nothing: what installed them has to say so.
func TestInstallProvesWhatItInstalled(t *testing.T) {
	b := newBench(t, "proof")
	text := b.run(t, notHealthy, "", "install", "--yes", "--profile", "small", "--no-verify=false", "loki")
	holds(t, text, "Ready in ", "\nProof\n", "logs  no line could be written:", "not proved: logs", "kalypsoctl verify tries again")
	holds(t, b.run(t, notHealthy, "", "verify"), "mimir is not installed", "not proved: logs")
}
