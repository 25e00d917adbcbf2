package sysdump

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/helm"
)

func TestText(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"an assignment", "password=hunter22 user=bob", "password=(redacted) user=bob"},
		{"YAML", "  secret_access_key: abc/def+1==\n  region: eu", "  secret_access_key: (redacted)\n  region: eu"},
		{"JSON", `{"adminPassword":"p w","a":1}`, `{"adminPassword":(redacted),"a":1}`},
		{"JSON inside JSON", `{"m":"{\"token\":\"abcdef\"}"}`, `{"m":"{\"token\":(redacted)}"}`},
		{"a flag", "run --api-key=abcdef --port=1", "run --api-key=(redacted) --port=1"},
		{"a header", "Authorization: Bearer abc.def", "Authorization: (redacted)"},
		{"a header by its shape", "got header Bearer abcdefghijkl", "got header (redacted)"},
		{"short names", "smtp_pass=hunter2 DB_PASS: hunter2 basicAuth=bob:hunter2 bypass=x", "smtp_pass=(redacted) DB_PASS: (redacted) basicAuth=(redacted) bypass=(redacted)"},
		{"what only begins so", "passive: true, passed=3", "passive: true, passed=3"},
		{"a URL with a password", "dial postgres://bob:hunter2@db/x", "dial postgres://bob:(redacted)@db/x"},
		{"a JSON web token", "x eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln y", "x (redacted) y"},
		{"a private key", "-----BEGIN RSA PRIVATE KEY-----\nMII\nx\n-----END RSA PRIVATE KEY-----\nend", "(redacted)\nend"},
		{"one that is cut off", "-----BEGIN PRIVATE KEY-----\nMII", "(redacted)"},
		{"where a credential is, is none", "secretName: kalypso-s3\ntokenPath: /var/run/token\nexistingSecret: x", "secretName: kalypso-s3\ntokenPath: /var/run/token\nexistingSecret: x"},
		{"what is put in elsewhere is none", "secret_access_key: ${AWS_SECRET_ACCESS_KEY}\npassword: $__file{/x}", "secret_access_key: ${AWS_SECRET_ACCESS_KEY}\npassword: $__file{/x}"},
		{"a switch is none", "automountServiceAccountToken: false", "automountServiceAccountToken: false"},
		{"a message stays", `secret "kalypso-s3" not found`, `secret "kalypso-s3" not found`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(string(newRedactor(nil).text([]byte(tt.text))), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestKnownValuesAreFoundAnywhere(t *testing.T) {
	const value = "Zk3vQ9xW7pL2"
	r := newRedactor([][]byte{[]byte(value), []byte(value + "longer"), []byte("root")})
	text := "started with " + value + " and " + base64.StdEncoding.EncodeToString([]byte(value)) + ", " + value + "longer by root"
	if got := string(r.text([]byte(text))); got != "started with (redacted) and (redacted), (redacted) by root" {
		t.Errorf("got %q", got)
	}
}

func TestTree(t *testing.T) {
	object := map[string]any{
		"metadata": map[string]any{
			"name": "x", "managedFields": []any{"a"},
			"annotations": map[string]any{"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "n"},
		},
		"spec": map[string]any{
			"password": "a", "pin": int64(1), "token": int64(7), "tokenTTL": int64(3), "empty_secret": "",
			"env": []any{
				map[string]any{"name": "ADMIN_PASSWORD", "value": "a"},
				map[string]any{"name": "HOME", "value": "/root"},
				map[string]any{"name": "S3_SECRET", "valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": "kalypso-s3", "key": "AWS_SECRET_ACCESS_KEY"}}},
			},
			"volumes": []any{map[string]any{"secret": map[string]any{"secretName": "kalypso-s3"}}},
			"args":    []any{"--password=abc", "--verbose"},
			"argv":    []any{"--db-password", "abc", "--passwordFile", "/x"},
			"tokens":  []any{"abc", int64(7)}, "smtpPass": "abc",
			"file": "[auth]\nadmin_password = abc\n",
		},
	}
	text, err := helm.WriteValues(newRedactor(nil).tree(object).(map[string]any))
	if err != nil {
		t.Fatal(err)
	}
	want := `metadata:
  annotations:
    note: "n"
  name: x
spec:
  args:
  - --password=(redacted)
  - --verbose
  argv:
  - --db-password
  - (redacted)
  - --passwordFile
  - /x
  empty_secret: ""
  env:
  - name: ADMIN_PASSWORD
    value: (redacted)
  - name: HOME
    value: /root
  - name: S3_SECRET
    valueFrom:
      secretKeyRef:
        key: AWS_SECRET_ACCESS_KEY
        name: kalypso-s3
  file: |
    [auth]
    admin_password = (redacted)
  password: (redacted)
  pin: 1
  smtpPass: (redacted)
  token: (redacted)
  tokenTTL: 3
  tokens:
  - (redacted)
  - (redacted)
  volumes:
  - secret:
      secretName: kalypso-s3
`
	if diff := cmp.Diff(text, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	w := &tail{limit: 100}
	for i := range 1000 {
		if _, err := w.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 9) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	w.trim()
	if len(w.data) > 100 || len(w.data) < 80 || !strings.HasSuffix(string(w.data), "kkkkkkkkk\nlllllllll\n") || w.cut+int64(len(w.data)) != 10000 {
		t.Errorf("%d bytes, cut %d: %q", len(w.data), w.cut, w.data)
	}
}
