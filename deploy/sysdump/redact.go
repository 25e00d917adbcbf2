package sysdump

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
)

// hidden stands where something was taken out.
const hidden = "(redacted)"

// shortest is the length of a credential that is looked for wherever it may
// be; shorter ones would be found inside ordinary words.
const shortest = 6

// redactor takes credentials out of what is about to be written. It knows some
// by their value, those that the stack itself uses, and guesses others by the
// name that they have.
type redactor struct {
	values [][]byte // longest first, so that none is left in part
}

// newRedactor knows these values, in plain and in base64.
func newRedactor(values [][]byte) *redactor {
	r := &redactor{}
	for _, v := range values {
		if len(v) >= shortest {
			r.values = append(r.values, v, []byte(base64.StdEncoding.EncodeToString(v)))
		}
	}
	slices.SortFunc(r.values, func(a, b []byte) int { return len(b) - len(a) })
	return r
}

var (
	// credential is a name that a credential may have.
	credential = regexp.MustCompile(`(?i)(passw|passphrase|pass$|pass[-_.]|secret|token|credential|htpasswd|basic[-_.]?auth|api[-_.]?key|access[-_.]?key|private[-_.]?key|authorization|cookie)`)
	// reference is the end of a name that only says where a credential is, or
	// how it is used.
	reference = regexp.MustCompile(`(?i)(name|names|namespace|ref|refs|file|path|dir|mount|type|kind|class|enabled|seconds|ttl|expiry|provider|version|policy|url|uri|issuer|audience|existingsecret|count|length|mode)$`)
	// assigned is NAME: VALUE, NAME=VALUE, "NAME": "VALUE", --NAME=VALUE.
	assigned = regexp.MustCompile(`(?i)([\w.-]*(?:passw|passphrase|pass\b|secret|token|credential|basic[-_.]?auth|api[-_.]?key|access[-_.]?key|private[-_.]?key|authorization|cookie)[\w.-]*)(\\?["']?[ \t]*[:=][ \t]*)(\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|'[^']*'|(?:(?:bearer|basic)[ \t]+)?[^\s,;&}\])"']+)`)
	// known by their shape alone.
	shaped = []*regexp.Regexp{
		regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`),
		regexp.MustCompile(`\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*`),                          // JSON web tokens
		regexp.MustCompile(`(?i)\b(?:bearer|basic)[ \t]+[\w+/=.~-]{12,}`),                // Authorization headers
		regexp.MustCompile(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`),                              // accounts of AWS
		regexp.MustCompile(`\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bglsa_\w{20,}`), // GitHub, Slack, Grafana
	}
	// userinfo is the password of a URL.
	userinfo = regexp.MustCompile(`(://[^/\s:@"']*:)[^/\s@"']+@`)
	// variable is a value that is put in elsewhere: $(NAME), ${NAME}, $__file{…}.
	variable = regexp.MustCompile(`^["']?\$(\(|\{|__|[A-Z_]+["']?$)`)
)

// text redacts what has no structure, or whose structure is unknown: logs,
// messages, files in ConfigMaps.
func (r *redactor) text(b []byte) []byte {
	for _, v := range r.values {
		b = bytes.ReplaceAll(b, v, []byte(hidden))
	}
	for _, s := range shaped {
		b = s.ReplaceAll(b, []byte(hidden))
	}
	b = userinfo.ReplaceAll(b, []byte("${1}"+hidden+"@"))
	return assigned.ReplaceAllFunc(b, func(found []byte) []byte {
		part := assigned.FindSubmatch(found)
		if !secretive(string(part[1])) || harmless(string(part[3])) {
			return found
		}
		return slices.Concat(part[1], part[2], []byte(hidden))
	})
}

// secretive says whether a name is that of a credential itself.
func secretive(name string) bool { return credential.MatchString(name) && !reference.MatchString(name) }

// harmless says whether a value cannot be a credential.
func harmless(value string) bool {
	switch strings.ToLower(strings.Trim(value, `"'`)) {
	case "", "true", "false", "null", "none", "{", "[", "|", ">", "|-", ">-", "{}", "[]", hidden:
		return true
	}
	return variable.MatchString(value)
}

// tree redacts values and objects in place, and gives them back. Whole fields
// are taken out that hold what was sent before.
func (r *redactor) tree(v any) any {
	switch v := v.(type) {
	case map[string]any:
		r.mapping(v)
		return v
	case []any:
		for i := range v {
			flag, isText := v[max(i-1, 0)].(string)
			if i > 0 && isText && strings.HasPrefix(flag, "-") && !strings.Contains(flag, "=") && secretive(flag) {
				v[i] = hide(v[i]) // arguments: --password, and its value
			} else {
				v[i] = r.tree(v[i])
			}
		}
		return v
	case string:
		return string(r.text([]byte(v)))
	}
	return v
}

// hide takes out a value that is known to be a credential, or a list of them.
func hide(v any) any {
	switch v := v.(type) {
	case string:
		if harmless(v) {
			return v
		}
		return hidden
	case int64, float64, int:
		return hidden
	case []any:
		for i := range v {
			v[i] = hide(v[i])
		}
	}
	return v
}

func (r *redactor) mapping(m map[string]any) {
	delete(m, "managedFields")
	if annotations, ok := m["annotations"].(map[string]any); ok {
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
	}
	// A variable of a container has its name and its value apart.
	if name, ok := m["name"].(string); ok && secretive(name) {
		if value, ok := m["value"].(string); ok && !harmless(value) {
			m["value"] = hidden
		}
	}
	for key, value := range m {
		if _, isTree := value.(map[string]any); !isTree && secretive(key) {
			value = hide(value)
		}
		m[key] = r.tree(value)
	}
}
