package main

import (
	"bytes"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootsModule has the certificates of the authorities that Mozilla trusts. It is
// pinned by go.mod, so that the same source gives the same image wherever it is
// built.
const rootsModule = "golang.org/x/crypto/x509roots/fallback"

// certificates are those that programs go by to know whom they talk to. An
// authority that is trusted for certificates from before some day only is left
// out: the file has no way to say so.
func certificates() ([]byte, error) {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, fmt.Errorf("write certificates: %w", err)
		}
	}
	return b.Bytes(), nil
}
