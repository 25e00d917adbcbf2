// Package oci writes into OCI layouts what go-containerregistry has no call for.
package oci

import (
	"bytes"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteBlob writes bytes into a layout, and says how they are referred to.
func WriteBlob(path layout.Path, kind types.MediaType, data []byte) (v1.Descriptor, error) {
	hash, size, err := v1.SHA256(bytes.NewReader(data))
	if err == nil {
		err = path.WriteBlob(hash, io.NopCloser(bytes.NewReader(data)))
	}
	return v1.Descriptor{MediaType: kind, Size: size, Digest: hash}, err
}
