// Package bucket makes buckets in an object store that speaks S3.
//
// It waits for a store that is not there yet, and gives up at once on what
// waiting cannot mend: a wrong key, a bucket of somebody else. What is there
// already is left as it is, so that it can run again at any time.
//
// Which buckets, where, and with which key is decided by who calls. It knows
// nothing of Kubernetes and reads no environment.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Config says where the store is and who asks.
type Config struct {
	Endpoint  string // URL without a path: http://HOST:PORT, https://HOST
	Region    string // empty: that which the store names
	AccessKey string
	SecretKey string
}

const (
	// attemptLimit is for one request to a store that takes connections and does
	// not answer.
	attemptLimit = 15 * time.Second
	// The store is asked again after a second at first, later after eight.
	firstPause, longestPause = time.Second, 8 * time.Second
)

// Store is an object store that has not been asked anything yet.
type Store struct {
	client   *minio.Client
	endpoint string
	region   string
	account  string
}

// Open checks the configuration. It asks the store nothing.
func Open(c Config) (*Store, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Path != "" && u.Path != "/" {
		return nil, wrongEndpoint(c.Endpoint)
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return nil, noKey()
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("prepare connections to %s: %w", u.Host, err)
	}
	// The few requests of this package are not worth connections that are kept.
	transport.DisableKeepAlives = true
	client, err := minio.New(u.Host, &minio.Options{
		Creds:     credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""),
		Secure:    u.Scheme == "https",
		Region:    c.Region,
		Transport: transport,
		// Ensure asks again itself, and says why.
		MaxRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare requests to %s: %w", u.Host, err)
	}
	return &Store{client: client, endpoint: u.Scheme + "://" + u.Host, region: c.Region, account: c.AccessKey}, nil
}

// Ensure has a bucket, and says whether it had to be made. While the store cannot
// be asked it asks again, until ctx ends; waiting is told the reason each time.
func (s *Store) Ensure(ctx context.Context, name string, waiting func(reason error)) (made bool, err error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, longestPause
	var last error
	for {
		made, err := s.attempt(ctx, name)
		if err == nil {
			return made, nil
		}
		reason := transient(err)
		if reason == nil {
			return false, s.fault(name, err)
		}
		if ctx.Err() == nil || last == nil { // else it only says that time is up
			last = reason
		}
		if ctx.Err() == nil {
			waiting(reason)
		}
		select {
		case <-ctx.Done():
			return false, s.gaveUp(ctx, last)
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// attempt looks whether the bucket is there and makes it if not.
func (s *Store) attempt(ctx context.Context, name string) (made bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	there, err := s.client.BucketExists(ctx, name)
	if there || err != nil && transient(err) != nil {
		return false, err
	}
	// An answer to HEAD has no body, so a refusal of it has no reason. The answer
	// to this one has.
	err = s.client.MakeBucket(ctx, name, minio.MakeBucketOptions{Region: s.region})
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code == minio.BucketAlreadyOwnedByYou {
		return false, nil // made by somebody else meanwhile, with the same key
	}
	return err == nil, err
}
