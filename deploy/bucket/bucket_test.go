package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// answers is a store that gives these answers to requests of one kind, the last
// of them again and again. What a real one does is TestMinIO.
type answers struct {
	head, put []answer
}

type answer struct {
	status int
	code   string
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	list := &a.head
	if r.Method == http.MethodPut {
		list = &a.put
	}
	next := (*list)[0]
	if len(*list) > 1 {
		*list = (*list)[1:]
	}
	w.WriteHeader(next.status)
	if next.code != "" && r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>said the store</Message></Error>`, next.code)
	}
}

func open(t *testing.T, endpoint string) *Store {
	t.Helper()
	// With a region the store is not asked for one.
	s, err := Open(Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: "key", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEnsure(t *testing.T) {
	ok, missing, forbidden := answer{200, ""}, answer{404, ""}, answer{403, ""}
	for _, tt := range []struct {
		name    string
		store   answers
		made    bool
		waited  string // part of what was waited for
		what    string // part of the fault
		fixSays string
	}{
		{name: "a bucket that is there is left", store: answers{head: []answer{ok}}},
		{name: "one that is not is made", store: answers{head: []answer{missing}, put: []answer{ok}}, made: true},
		{name: "made by another Job meanwhile is there", store: answers{head: []answer{missing}, put: []answer{{409, "BucketAlreadyOwnedByYou"}}}},
		{name: "a store that starts is waited for", store: answers{head: []answer{{503, ""}, missing}, put: []answer{ok}}, made: true, waited: "503"},
		{name: "one that is busy too", store: answers{head: []answer{missing}, put: []answer{{503, "SlowDown"}, ok}}, made: true, waited: "said the store"},
		{name: "somebody else's bucket", store: answers{head: []answer{forbidden}, put: []answer{{409, "BucketAlreadyExists"}}},
			what: "bucket b-1 belongs to somebody else in http://127.0.0.1", fixSays: "another name"},
		{name: "an unknown key", store: answers{head: []answer{forbidden}, put: []answer{{403, "InvalidAccessKeyId"}}},
			what: "refuses the key key", fixSays: "AWS_ACCESS_KEY_ID"},
		{name: "an unknown key in other words", store: answers{head: []answer{missing}, put: []answer{{404, "XAdminUserNotFound"}}},
			what: "refuses the key key", fixSays: "AWS_ACCESS_KEY_ID"},
		{name: "a wrong secret", store: answers{head: []answer{forbidden}, put: []answer{{403, "SignatureDoesNotMatch"}}},
			what: "refuses the key key", fixSays: "AWS_SECRET_ACCESS_KEY"},
		{name: "a key without rights", store: answers{head: []answer{forbidden}, put: []answer{{403, "AccessDenied"}}},
			what: "may not make bucket b-1", fixSays: "s3:CreateBucket"},
		{name: "any other refusal has the store's words", store: answers{head: []answer{missing}, put: []answer{{400, "TooManyBuckets"}}},
			what: "cannot make bucket b-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(&tt.store)
			defer server.Close()
			var waited strings.Builder
			made, err := open(t, server.URL).Ensure(t.Context(), "b-1", func(reason error) { waited.WriteString(reason.Error()) })
			if made != tt.made || !strings.Contains(waited.String(), tt.waited) || (tt.waited == "") != (waited.Len() == 0) {
				t.Errorf("made %v, want %v; waited for %q, want %q", made, tt.made, &waited, tt.waited)
			}
			var fault *profiler.Fault
			errors.As(err, &fault)
			switch {
			case tt.what == "" && err != nil:
				t.Errorf("it fails: %v", err)
			case tt.what != "" && fault == nil:
				t.Errorf("its error is %v", err)
			case tt.what != "" && (!strings.Contains(fault.What, tt.what) || !strings.Contains(fault.Fix, tt.fixSays) || fault.Why == nil):
				t.Errorf("it says\n%s\n%v\n%s", fault.What, fault.Why, fault.Fix)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
}

func TestWaitingHasAnEnd(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close() // nobody listens there any more
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	reasons := 0
	_, err := open(t, server.URL).Ensure(ctx, "b-1", func(error) { reasons++ })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a store that is not there: %v", err)
	}
	if reasons == 0 {
		t.Error("nobody is told what is waited for")
	}
	ctx, cancel = context.WithCancel(t.Context())
	_, err = open(t, server.URL).Ensure(ctx, "b-1", func(error) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestEncryptionThatDoesNotFit(t *testing.T) {
	for name, start := range map[string]func(*httptest.Server){
		"a private certificate": (*httptest.Server).StartTLS,
		"no encryption":         (*httptest.Server).Start,
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.NotFoundHandler())
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			start(server)
			defer server.Close()
			endpoint := "https://" + server.Listener.Addr().String()
			_, err := open(t, endpoint).Ensure(t.Context(), "b-1", func(reason error) { t.Errorf("it waits: %v", reason) })
			var fault *profiler.Fault
			if !errors.As(err, &fault) || !strings.Contains(fault.Fix, "SSL_CERT_FILE") {
				t.Errorf("it fails with %v", err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	for endpoint, fix := range map[string]string{
		"":                          "a URL",
		"kalypso-minio.minio:9000":  "http://kalypso-minio.minio:9000 or",
		"s3://bucket":               "a URL",
		"http://host/path":          "a URL",
		"http://user:word@host":     "a URL",
		"http://":                   "a URL",
		"https://s3.example.org/?x": "a URL",
	} {
		_, err := Open(Config{Endpoint: endpoint, AccessKey: "a", SecretKey: "b"})
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !strings.Contains(fault.Fix, fix) {
			t.Errorf("endpoint %q: %+v", endpoint, fault)
		}
	}
	for _, c := range []Config{{Endpoint: "http://h", SecretKey: "b"}, {Endpoint: "http://h", AccessKey: "a"}} {
		if _, err := Open(c); err == nil {
			t.Errorf("no key: %+v is taken", c)
		}
	}
	if _, err := Open(Config{Endpoint: "https://h/", AccessKey: "a", SecretKey: "b"}); err != nil {
		t.Error(err)
	}
}
