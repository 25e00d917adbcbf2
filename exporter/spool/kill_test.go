package spool

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter"
)

// Where these are set, the test binary is the agent that gets killed.
const (
	childDir   = "SPOOL_TEST_DIR"
	childURL   = "SPOOL_TEST_URL"
	childFirst = "SPOOL_TEST_FIRST"
)

// poster sends requests over HTTP.
type poster struct {
	url    string
	client *http.Client
}

func (p *poster) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(r.Body))
	if err != nil {
		return exporter.Receipt{}, err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return exporter.Receipt{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return exporter.Receipt{}, fmt.Errorf("status %s", res.Status)
	}
	return exporter.Receipt{}, nil
}

func (p *poster) Close() error {
	p.client.CloseIdleConnections()
	return nil
}

func killConfig(dir, url string) Config {
	return Config{
		Sender: &poster{url, &http.Client{}}, Dir: dir, Rate: 1 << 30,
		MinBackoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond,
	}
}

// child puts requests until it is killed, and says which it has put.
func child(dir string) {
	s, err := Open(killConfig(dir, os.Getenv(childURL)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go s.Run(context.Background())
	first, _ := strconv.Atoi(os.Getenv(childFirst))
	every := time.NewTicker(time.Millisecond)
	for n := first; ; n++ {
		if err := s.Put(request(n)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
		<-every.C
	}
}

// TestNothingIsLostToSIGKILL kills an agent at random moments, again and again
// on the same folder. Each request that Put took must arrive. One request may
// arrive twice for each kill: the one that was being answered.
func TestNothingIsLostToSIGKILL(t *testing.T) {
	const kills = 25
	var mu sync.Mutex
	arrived := map[int]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || rand.IntN(4) == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		mu.Lock()
		arrived[number(&exporter.Request{Body: body})]++
		mu.Unlock()
	}))
	defer server.Close()
	dir := t.TempDir()
	put := map[int]bool{}   // Put returned before the kill
	maybe := map[int]bool{} // it had begun, or was about to
	next := 0
	for range kills {
		last := kill(t, dir, server.URL, next)
		for n := next; n <= last; n++ {
			put[n] = true
		}
		maybe[last+1] = true
		next = last + 2
	}

	s := open(t, killConfig(dir, server.URL))
	defer s.cfg.Sender.Close()
	run(t, s)
	until(t, "all is sent", func() bool { return s.Stats().Disk.Requests == 0 })
	if st := balance(t, s, nil); st.Unreadable.Requests > 0 || st.ForeignFiles > 0 || st.Recovered.Requests == 0 {
		t.Errorf("after the last kill: %+v", st)
	}
	mu.Lock()
	defer mu.Unlock()
	for n := range put {
		if arrived[n] == 0 {
			t.Errorf("request %d was put and never arrived", n)
		}
	}
	twice := 0
	for n, times := range arrived {
		if !put[n] && !maybe[n] {
			t.Errorf("request %d arrived, and nobody put it", n)
		}
		twice += times - 1
	}
	if twice > kills {
		t.Errorf("%d requests arrived twice, after %d kills", twice, kills)
	}
	t.Logf("%d requests, %d of them twice", len(arrived), twice)
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// kill runs an agent for a moment, from request first on. It gives the last
// request that was put.
func kill(t *testing.T, dir, url string, first int) (last int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childURL+"="+url, childFirst+"="+strconv.Itoa(first))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		_ = cmd.Wait()
		t.Fatalf("the child did nothing: %s", &stderr)
	}
	killer := time.AfterFunc(time.Duration(rand.IntN(60_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	last = first
	for lines.Scan() {
		if last, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	return last
}
