package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/cmd/internal/web"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// pageOf is something with a page for a browser.
type pageOf struct {
	component string
	port      int    // of its Service; of its pod, where it has no Service
	local     int    // on this machine, when it is free
	secret    string // who may log in: its user and password
	user      string // key of the Secret
	password  string // key of the Secret
}

func pages() []pageOf {
	return []pageOf{
		{component: "grafana", port: 80, local: 3000, secret: "kalypso-grafana-admin", user: "admin-user", password: "admin-password"},
		{component: "pyroscope", port: 4040, local: 4040},
		{component: "minio", port: 9001, local: 9001, secret: "kalypso-s3", user: "rootUser", password: "rootPassword"},
		{component: "agent", port: 4041, local: 4041},
	}
}

type openFlags struct {
	clusterFlags
	port      int
	copy      bool
	noBrowser bool
}

func newOpenCommand() *cobra.Command {
	f := &openFlags{}
	names := make([]string, 0, len(pages()))
	for _, p := range pages() {
		names = append(names, p.component)
	}
	cmd := &cobra.Command{
		Use:   "open [flags] " + strings.Join(names, "|"),
		Short: "a page of the stack in the browser",
		Long: `Make a page of the stack reachable on this machine, at 127.0.0.1, until ^C, and open
it in the browser. Prints its address and the user; the password is printed by no
verb: the command that shows it is, and --copy puts it into the clipboard.`,
		Example: `  kalypsoctl open grafana                             dashboards
  kalypsoctl open grafana --copy                      with the password in the clipboard
  kalypsoctl open pyroscope --no-browser --port 8080  only the address`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return cli.Usage(cmd.CommandPath()+" grafana", "open takes one page: %s", strings.Join(names, ", "))
			case findPage(args[0]) == nil:
				fix := "the pages are " + strings.Join(names, ", ")
				if word := near.Word(args[0], names); word != "" {
					fix = cmd.CommandPath() + " " + word
				}
				return cli.Usage(fix, "there is no page of %q", args[0])
			}
			return nil
		},
		ValidArgs: names,
		RunE:      func(cmd *cobra.Command, args []string) error { return f.run(cmd, *findPage(args[0])) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.port, "port", 0, "port on this machine (by default the page's usual one, or any that is free)")
	fl.BoolVar(&f.copy, "copy", false, "put the password into the clipboard")
	fl.BoolVar(&f.noBrowser, "no-browser", false, "open no browser")
	f.register(fl)
	f.complete(cmd)
	return cmd
}

func findPage(name string) *pageOf {
	for _, p := range pages() {
		if p.component == name {
			return &p
		}
	}
	return nil
}

func (f *openFlags) run(cmd *cobra.Command, p pageOf) error {
	if f.port < 0 || f.port > 65535 {
		return cli.Usage(fmt.Sprintf("--port %d", p.local), "--port cannot be %d", f.port)
	}
	ctx := cmd.Context()
	cluster, err := f.connect(ctx)
	if err != nil {
		return err
	}
	forwarding, err := f.forward(ctx, cluster, p)
	if err != nil {
		return err
	}
	defer forwarding.Close()
	address := "http://" + forwarding.Addr
	if err := answers(ctx, address); err != nil {
		return &profiler.Fault{What: p.component + " does not answer", Why: err, Fix: "kalypsoctl logs " + p.component}
	}
	out := cmd.OutOrStdout()
	if _, err := fmt.Fprintf(out, "%s     (pod %s; ^C ends it)\n", address, forwarding.Pod); err != nil {
		return fmt.Errorf("print the address: %w", err)
	}
	if p.secret != "" {
		if err := f.login(ctx, out, cluster, p); err != nil {
			return err
		}
	}
	if !f.noBrowser {
		web.Browse(address)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-forwarding.Ended:
		return &profiler.Fault{What: "the way to pod " + forwarding.Pod + " is gone", Why: errors.New("the pod ended, or the connection broke"), Fix: cmd.CommandPath() + " " + p.component}
	}
}

// forward opens the way: to the port that was asked for, or to the page's usual
// one, or to any.
func (f *openFlags) forward(ctx context.Context, cluster *kube.Cluster, p pageOf) (*kube.Forwarding, error) {
	c := componentNamed(p.component)
	local := f.port
	if local == 0 && free(p.local) {
		local = p.local
	}
	if len(c.Serves) > 0 {
		return cluster.ForwardTo(ctx, c.Namespace, c.Serves[0].Name, p.port, local)
	}
	pods, err := podsOf(ctx, cluster, c)
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if kube.PodReady(pod) {
			return cluster.ForwardPod(ctx, pod.Namespace, pod.Name, p.port, local)
		}
	}
	return nil, &profiler.Fault{What: "no pod of " + c.Name + " is ready", Fix: "kalypsoctl status     tells why"}
}

// free says whether nobody listens on a port of this machine.
func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// answerLimit is how long a page may take: it has a ready pod.
const answerLimit = 10 * time.Second

// answers asks for a page until something comes, whatever it is.
func answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("no answer in %s", answerLimit))
	defer cancel()
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// login tells who may log in, and how to see the password.
func (f *openFlags) login(ctx context.Context, out io.Writer, cluster *kube.Cluster, p pageOf) error {
	namespace := componentNamed(p.component).Namespace
	secret, err := cluster.Client.CoreV1().Secrets(namespace).Get(ctx, p.secret, metav1.GetOptions{})
	if err != nil {
		_, err = fmt.Fprintf(out, "who may log in is in Secret %s/%s, which cannot be read: %v\n", namespace, p.secret, err)
		return err
	}
	if f.copy {
		if err := clip(ctx, secret.Data[p.password]); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "user %s, password in the clipboard\n", secret.Data[p.user])
		return err
	}
	_, err = fmt.Fprintf(out, "user %s; the password: kubectl %s-n %s get secret %s -o go-template='{{index .data \"%s\" | base64decode}}'\n",
		secret.Data[p.user], f.kubectlFlags(), namespace, p.secret, p.password)
	return err
}

// kubectlFlags are the flags that choose the same cluster.
func (f *openFlags) kubectlFlags() string {
	flags := ""
	if f.kubeconfig != "" {
		flags += "--kubeconfig " + shellWord(f.kubeconfig) + " "
	}
	if f.context != "" {
		flags += "--context " + shellWord(f.context) + " "
	}
	return flags
}

// clip puts text into the clipboard, by the first program that there is.
func clip(ctx context.Context, text []byte) error {
	programs := [][]string{{"pbcopy"}, {"wl-copy"}, {"xclip", "-selection", "clipboard"}, {"xsel", "--clipboard", "--input"}}
	for _, p := range programs {
		path, err := exec.LookPath(p[0])
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, path, p[1:]...)
		cmd.Stdin = strings.NewReader(string(text))
		if err := cmd.Run(); err != nil {
			return &profiler.Fault{What: "cannot write to the clipboard", Why: fmt.Errorf("%s: %w", p[0], err), Fix: "kalypsoctl open without --copy prints the command that shows the password"}
		}
		return nil
	}
	return &profiler.Fault{What: "cannot write to the clipboard", Why: errors.New("there is none of pbcopy, wl-copy, xclip, xsel"), Fix: "kalypsoctl open without --copy prints the command that shows the password"}
}
