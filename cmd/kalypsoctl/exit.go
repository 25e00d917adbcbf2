package main

import (
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// faultCodes are the exit codes of what keeps a verb from its work, beside those
// that all our programs have. A code is never given to something else.
func faultCodes() []cli.Code {
	is := func(kind error) func(error) bool {
		return func(err error) bool { return errors.Is(err, kind) }
	}
	return []cli.Code{
		{Exit: 10, Means: "no kubeconfig, or none that can be used", Is: is(kube.ErrKubeconfig)},
		{Exit: 11, Means: "the kubeconfig has no such context", Is: is(kube.ErrContext)},
		{Exit: 12, Means: "the cluster does not answer", Is: is(kube.ErrUnreachable)},
		{Exit: 13, Means: "a certificate has expired, or is not trusted", Is: is(kube.ErrCertificate)},
		{Exit: 14, Means: "the cluster refuses your credentials", Is: func(err error) bool {
			return errors.Is(err, kube.ErrCredentials) || apierrors.IsUnauthorized(err)
		}},
		{Exit: 15, Means: "rights are missing", Is: func(err error) bool {
			return errors.Is(err, kube.ErrForbidden) || apierrors.IsForbidden(err)
		}},
		{Exit: 16, Means: "Kubernetes is too old", Is: is(kube.ErrTooOld)},
		{Exit: 17, Means: "an upstream chart is not here, or cannot be downloaded", Is: is(helm.ErrNoChart)},
		{Exit: 18, Means: "an upstream chart is damaged, or not the one that was pinned", Is: is(helm.ErrChartChanged)},
		{Exit: 19, Means: "a namespace is being deleted, and that does not end", Is: is(install.ErrTerminating)},
		{Exit: 20, Means: "something is there that kalypsoctl did not make", Is: is(install.ErrForeign)},
		{Exit: 21, Means: "no node takes a pod", Is: is(kube.ErrNoNode)},
		{Exit: 22, Means: "volumes cannot be made", Is: is(kube.ErrNoVolume)},
	}
}

// exitCodes is what the help of the root command tells of exit codes.
func exitCodes() string {
	var b strings.Builder
	b.WriteString("0 done · 1 failed · 2 wrong usage or settings · 3 not healthy · 4 there are changes · 5 timed out · 130 interrupted")
	for _, c := range faultCodes() {
		fmt.Fprintf(&b, "\n  %d  %s", c.Exit, c.Means)
	}
	return b.String()
}
