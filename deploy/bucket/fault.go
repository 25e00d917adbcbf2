package bucket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/kalypso-dev/kalypso/profiler"
)

// transient gives the reason of an error that may be gone a moment later, else
// nil: the store is starting, overloaded, or cannot be reached yet.
func transient(err error) error {
	var (
		answer  minio.ErrorResponse
		request *url.Error
	)
	switch {
	case errors.As(err, &answer):
		if answer.StatusCode >= http.StatusInternalServerError || answer.StatusCode == http.StatusTooManyRequests {
			return fmt.Errorf("it answers %d: %s", answer.StatusCode, answer.Message)
		}
		return nil
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("it does not answer")
	case isTLS(err):
		return nil
	case errors.As(err, &request):
		return request.Err // without the method and the path
	}
	return nil
}

// isTLS says whether the two sides do not agree on encryption.
func isTLS(err error) bool {
	var (
		certificate *tls.CertificateVerificationError
		header      tls.RecordHeaderError
	)
	return errors.As(err, &certificate) || errors.As(err, &header) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// fault says what is wrong that waiting does not mend.
func (s *Store) fault(name string, err error) error {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		f := &profiler.Fault{What: "cannot talk to the object store " + s.endpoint, Why: withoutRequest(err)}
		if isTLS(err) {
			f.Fix = "name it with http:// or https://, whichever it speaks; SSL_CERT_FILE names the certificate authority of a private one"
		}
		return f
	}
	why := fmt.Errorf("it answers %s: %s", answer.Code, answer.Message)
	switch answer.Code {
	case minio.InvalidAccessKeyID, minio.SignatureDoesNotMatch, "XAdminUserNotFound": // the last is Versity Gateway's
		return &profiler.Fault{What: fmt.Sprintf("the object store %s refuses the key %s", s.endpoint, s.account), Why: why,
			Fix: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY have to be those of an account of this store"}
	case minio.BucketAlreadyExists:
		return &profiler.Fault{What: fmt.Sprintf("bucket %s belongs to somebody else in %s", name, s.endpoint), Why: why,
			Fix: "choose another name here and in the values of what stores in it"}
	case minio.AccessDenied:
		return &profiler.Fault{What: fmt.Sprintf("the key %s may not make bucket %s in %s", s.account, name, s.endpoint), Why: why,
			Fix: "let it do s3:ListBucket and s3:CreateBucket, or make the bucket with another key"}
	}
	return &profiler.Fault{What: fmt.Sprintf("cannot make bucket %s in %s", name, s.endpoint), Why: why}
}

// withoutRequest leaves the method and the path out of an error.
func withoutRequest(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// gaveUp says why the store could not be asked until the end. It is ctx's error
// too, for whoever wants to know that time was up.
func (s *Store) gaveUp(ctx context.Context, reason error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return &profiler.Fault{What: "the object store " + s.endpoint + " could not be asked in time", Why: timeout{reason},
		Fix: "look at its pod, or wait longer with --timeout"}
}

// timeout is a reason that was the last one before time was up.
type timeout struct{ reason error }

// Error is the reason.
func (t timeout) Error() string { return t.reason.Error() }

// Is tells that it is a timeout.
func (t timeout) Is(target error) bool { return target == context.DeadlineExceeded }

func wrongEndpoint(endpoint string) error {
	f := &profiler.Fault{What: fmt.Sprintf("the endpoint of the object store cannot be %q", endpoint), Fix: "it is a URL without a path, such as http://kalypso-minio.minio:9000"}
	if _, err := url.Parse("http://" + endpoint); err == nil && endpoint != "" && !strings.Contains(endpoint, "://") && !strings.Contains(endpoint, "/") {
		f.Fix = "http://" + endpoint + " or https://" + endpoint
	}
	return f
}

func noKey() error {
	return &profiler.Fault{What: "there is no key for the object store", Fix: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"}
}
