package verify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

// sources are the stores that Grafana has a data source of; their uids are the
// names of the components.
var sources = [...]string{"mimir", "tempo", "loki", "pyroscope"}

// grafana makes the check.
func (c *Config) grafana() check.Check {
	return check.Check{
		ID: "grafana", Title: "Grafana reaches each of its data sources", Severity: check.Required,
		Effect: "dashboards that use them are empty",
		Fix:    "kalypsoctl logs grafana",
		Run:    c.needs("grafana", c.proveGrafana),
	}
}

func (c *Config) proveGrafana(ctx context.Context, grafana component.Component) check.Outcome {
	api := c.open(grafana, grafana.Serves[0].Ports[0])
	defer api.Close()
	if err := c.login(ctx, grafana, api); err != nil {
		return check.Fail("%v", err).WithFix("kalypsoctl install grafana     makes the Secret anew where it lacks")
	}
	uids, err := c.listSources(ctx, api)
	if err != nil {
		out := check.Fail("the data sources cannot be listed: %v", err)
		if refusedLogin(err) {
			return out.WithFix("Grafana keeps a password that was changed in it: kubectl -n %s exec deploy/%s -- grafana cli admin reset-admin-password, with that of the Secret %s",
				grafana.Namespace, grafana.Serves[0].Name, grafana.Secrets[0].Name)
		}
		return out.WithFix("%s", c.fix(grafana, err))
	}
	var wrong []string
	for _, name := range sources {
		if _, ok := c.installed(name); ok && !slices.Contains(uids, name) {
			wrong = append(wrong, fmt.Sprintf("%s: there is no such data source", name))
		}
	}
	for _, uid := range uids {
		if err := health(ctx, api, uid); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", uid, err))
		}
	}
	switch {
	case len(wrong) > 0:
		return check.Fail("%s", strings.Join(wrong, "\n"))
	case len(uids) == 0:
		return check.Fail("Grafana has no data source")
	case len(uids) == 1:
		return check.Pass("1 data source healthy")
	}
	return check.Pass("%d data sources healthy", len(uids))
}

// login reads the administrator's password. It goes into a header and nowhere
// else.
func (c *Config) login(ctx context.Context, grafana component.Component, api *service) error {
	want := grafana.Secrets[0]
	secret, err := c.Client.CoreV1().Secrets(grafana.Namespace).Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the Secret %s of namespace %s: %w", want.Name, grafana.Namespace, err)
	}
	user, password := secret.Data[want.Keys[0]], secret.Data[want.Keys[1]]
	if len(user) == 0 || len(password) == 0 {
		return fmt.Errorf("the Secret %s of namespace %s lacks %s", want.Name, grafana.Namespace, strings.Join(want.Keys, " or "))
	}
	both := slices.Concat(user, []byte(":"), password)
	api.header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString(both))
	return nil
}

// listSources gives the uids. Grafana answers late after it was started.
func (c *Config) listSources(ctx context.Context, api *service) (uids []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := api.get(ctx, "/api/datasources")
		if err != nil {
			return false, err
		}
		var list []struct{ UID string }
		if err := json.Unmarshal(answer, &list); err != nil {
			return false, &permanentError{fmt.Errorf("the answer is no list of data sources: %w", err)}
		}
		for _, one := range list {
			uids = append(uids, one.UID)
		}
		return true, nil
	})
	if !done && err == nil {
		err = fmt.Errorf("%s does not answer", api)
	}
	return uids, err
}

// health asks a data source once: what it needs has been proved before.
func health(ctx context.Context, api *service, uid string) error {
	answer, err := api.get(ctx, "/api/datasources/uid/"+url.PathEscape(uid)+"/health")
	var said *answerError
	if errors.As(err, &said) && said.words != "" {
		return errors.New(said.words)
	}
	if err != nil {
		return err
	}
	var state struct{ Status, Message string }
	if err := json.Unmarshal(answer, &state); err != nil {
		return fmt.Errorf("the answer is no state: %w", err)
	}
	if !strings.EqualFold(state.Status, "ok") {
		return fmt.Errorf("%s: %s", state.Status, words([]byte(state.Message)))
	}
	return nil
}

func refusedLogin(err error) bool {
	var said *answerError
	return errors.As(err, &said) && said.status == http.StatusUnauthorized
}
