package verify

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

const (
	istiodPort = 15014 // Istio's "http-monitoring", where it tells its version
	proxy      = "istio-proxy"
	// autoImage is what an image is called that istiod is to replace.
	autoImage = "auto"
)

// mesh makes the check.
func (c *Config) mesh() check.Check {
	return check.Check{
		ID: "mesh", Title: "istiod serves, and puts its proxy into a pod", Severity: check.Required,
		Effect: "pods that want Istio's proxy start without it, and the gateway does not start",
		Fix:    "kalypsoctl logs istiod",
		Run:    c.needs("istiod", c.proveMesh),
	}
}

func (c *Config) proveMesh(ctx context.Context, istiod component.Component) check.Outcome {
	monitoring := c.open(istiod, istiodPort)
	defer monitoring.Close()
	version, err := c.istiodVersion(ctx, monitoring)
	if err != nil {
		return check.Fail("istiod does not serve: %v", err).WithFix("%s", c.fix(istiod, err))
	}
	pod, err := c.Client.CoreV1().Pods(istiod.Namespace).Create(ctx, probePod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return check.Fail("istiod %s serves; a pod that asks for its proxy is refused:\n%v", version, err)
	}
	if image := proxyImage(pod); image == "" || image == autoImage {
		return check.Fail("istiod %s serves; a pod that asked for its proxy did not get it", version).
			WithFix("kubectl describe mutatingwebhookconfiguration istio-sidecar-injector     says where the API server sends pods")
	}
	return check.Pass("istiod %s serves and injects its proxy", version)
}

// versionText is "1.30.3-HASH-Clean".
var versionText = regexp.MustCompile(`^[0-9]+\.[0-9]+[0-9a-z.]*`)

func (c *Config) istiodVersion(ctx context.Context, s *service) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := s.get(ctx, "/version")
		if err != nil {
			return false, err
		}
		if version = versionText.FindString(string(answer)); version == "" {
			return false, &permanentError{fmt.Errorf("%s tells no version but %q", s, words(answer))}
		}
		return true, nil
	})
	if !done && err == nil {
		err = fmt.Errorf("%s does not answer", s)
	}
	return version, err
}

// probePod is a pod such as that of the gateway. It is asked for without being
// kept: the API server sends it through all webhooks and forgets it.
func probePod() *corev1.Pod {
	no, yes := false, true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "kalypso-verify-",
			Labels:       map[string]string{"sidecar.istio.io/inject": "true"},
			Annotations:  map[string]string{"inject.istio.io/templates": "gateway"},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext:              &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: proxy, Image: autoImage,
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			}},
		},
	}
}

func proxyImage(pod *corev1.Pod) string {
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if container.Name == proxy {
			return container.Image
		}
	}
	return ""
}
