// Package secret makes the Secrets that components read and no chart holds:
// credentials, which are random, made once, and the same in every namespace
// that has them.
//
// What is there is never changed: a Secret that one namespace has is the source
// for the others, whoever made it. Values go from the random source or from the
// cluster into the cluster, and nowhere else: no result and no error has them.
//
// The package knows Secrets and the catalogue, and nothing of charts.
package secret

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Labels are on every Secret that is made here.
func Labels() map[string]string {
	return map[string]string{"app.kubernetes.io/managed-by": "kalypsoctl", "app.kubernetes.io/part-of": "kalypso"}
}

// Made is a Secret that a component needs.
type Made struct {
	Namespace string
	Name      string
	Created   bool // it was not there; for Look: it will be made
}

// String is how a message names the Secret.
func (m Made) String() string { return m.Namespace + "/" + m.Name }

// Store says whose the object store is.
type Store uint8

// The stores. Credentials of a store that others run cannot be made up.
const (
	OwnStore Store = iota
	ForeignStore
)

// Look says which Secrets Ensure would find and which it would make, and what
// is wrong with those that are there. It changes nothing.
func Look(ctx context.Context, client kubernetes.Interface, components []component.Component, store Store) ([]Made, error) {
	return walk(ctx, client, components, store, func(need, corev1.Secret) error { return nil })
}

// Ensure makes the Secrets of components that are not there, in namespaces that
// are. An error is a profiler.Fault where a person is to mend something.
func Ensure(ctx context.Context, client kubernetes.Interface, components []component.Component, store Store) ([]Made, error) {
	return walk(ctx, client, components, store, func(n need, s corev1.Secret) error {
		_, err := client.CoreV1().Secrets(n.namespace).Create(ctx, &s, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // made by somebody else a moment ago
			return fmt.Errorf("make Secret %s/%s: it appeared meanwhile; run the command again", n.namespace, n.name)
		}
		if err != nil {
			return fmt.Errorf("make Secret %s/%s: %w", n.namespace, n.name, err)
		}
		return nil
	})
}

// need is a Secret in a namespace.
type need struct {
	namespace, name string
	keys            []string
}

// walk looks at what components need and gives each that is not there to add.
func walk(ctx context.Context, client kubernetes.Interface, components []component.Component, store Store, add func(need, corev1.Secret) error) ([]Made, error) {
	var made []Made
	byName := map[string]values{}
	for _, n := range needs(components) {
		known, ok := byName[n.name]
		if !ok {
			var err error
			if known, err = source(ctx, client, n.name, store); err != nil {
				return nil, err
			}
			byName[n.name] = known
		}
		found, err := client.CoreV1().Secrets(n.namespace).Get(ctx, n.name, metav1.GetOptions{})
		if err == nil {
			if err := complete(n, found); err != nil {
				return nil, err
			}
			made = append(made, Made{Namespace: n.namespace, Name: n.name})
			continue
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read Secret %s/%s: %w", n.namespace, n.name, err)
		}
		if known == nil {
			return nil, noCredentials(n)
		}
		s := corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: n.name, Labels: Labels()},
			Type:       corev1.SecretTypeOpaque,
			Data:       map[string][]byte{},
		}
		for _, key := range n.keys {
			s.Data[key] = known[meaning(key)]
		}
		if err := add(n, s); err != nil {
			return nil, err
		}
		made = append(made, Made{Namespace: n.namespace, Name: n.name, Created: true})
	}
	return made, nil
}

// needs are the Secrets of components, each once.
func needs(components []component.Component) []need {
	var out []need
	for _, c := range components {
		for _, s := range c.Secrets {
			if !slices.ContainsFunc(out, func(n need) bool { return n.namespace == c.Namespace && n.name == s.Name }) {
				out = append(out, need{c.Namespace, s.Name, s.Keys})
			}
		}
	}
	return out
}

// values are what a Secret holds, by what it means.
type values map[string][]byte

// meaning is one word for keys that hold the same: a server calls its
// credentials otherwise than those that use them.
func meaning(key string) string {
	switch key {
	case "rootUser", "AWS_ACCESS_KEY_ID":
		return "s3-user"
	case "rootPassword", "AWS_SECRET_ACCESS_KEY":
		return "s3-password"
	}
	return key
}

// source gives what Secrets of this name hold: what a namespace has that is in
// the catalogue, the server's own first, or else random values. It is nil where
// none may be made up.
func source(ctx context.Context, client kubernetes.Interface, name string, store Store) (values, error) {
	for _, n := range needs(component.All()) {
		if n.name != name {
			continue
		}
		found, err := client.CoreV1().Secrets(n.namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read Secret %s/%s: %w", n.namespace, name, err)
		}
		held := values{}
		for key, value := range found.Data {
			held[meaning(key)] = value
		}
		for _, key := range n.keys {
			if len(held[meaning(key)]) == 0 {
				return nil, missing(n, found)
			}
		}
		return held, nil
	}
	if name == objectStoreSecret && store == ForeignStore {
		return nil, nil
	}
	return random(), nil
}

// objectStoreSecret has its values from the object store's owner where that is
// not us.
const objectStoreSecret = "kalypso-s3"

// random makes values that nobody can guess: 100 bits for a name, over 200 for
// a password, of letters and digits, so that no configuration file has to quote
// them.
func random() values {
	text := func(n int) []byte { return []byte((rand.Text() + rand.Text())[:n]) }
	return values{
		"s3-user":        text(20),
		"s3-password":    text(40),
		"admin-user":     []byte("admin"),
		"admin-password": text(40),
	}
}

// complete says whether a Secret has what is needed of it.
func complete(n need, s *corev1.Secret) error {
	for _, key := range n.keys {
		if len(s.Data[key]) == 0 {
			return missing(n, s)
		}
	}
	return nil
}

// missing tells of a Secret that is there and lacks something.
func missing(n need, s *corev1.Secret) error {
	var lacks []string
	for _, key := range n.keys {
		if len(s.Data[key]) == 0 {
			lacks = append(lacks, key)
		}
	}
	fix := fmt.Sprintf("kubectl -n %s patch secret %s -p '{\"stringData\":{%s}}'", n.namespace, n.name, placeholders(lacks))
	if s.Labels["app.kubernetes.io/managed-by"] == "kalypsoctl" {
		fix += "     or, to have it copied from another namespace,  kubectl -n " + n.namespace + " delete secret " + n.name
	}
	return &profiler.Fault{
		What: fmt.Sprintf("the Secret %s/%s has no %s", n.namespace, n.name, strings.Join(lacks, " and no ")),
		Why:  errors.New("it was there before, and a Secret that is there is not changed"),
		Fix:  fix,
	}
}

func placeholders(keys []string) string {
	var out []string
	for _, key := range keys {
		out = append(out, fmt.Sprintf("%q:\"…\"", key))
	}
	return strings.Join(out, ",")
}

// noCredentials asks for the credentials of a store that is not ours.
func noCredentials(n need) error {
	var literals []string
	for _, key := range n.keys {
		literals = append(literals, "--from-literal="+key+"=…")
	}
	return &profiler.Fault{
		What: fmt.Sprintf("there is no Secret %s/%s with the credentials of the object store", n.namespace, n.name),
		Why:  errors.New("the store is not installed by kalypsoctl, so its credentials cannot be made up"),
		Fix: fmt.Sprintf("kubectl create namespace %s; kubectl -n %s create secret generic %s %s     (other namespaces get copies)",
			n.namespace, n.namespace, n.name, strings.Join(literals, " ")),
	}
}
