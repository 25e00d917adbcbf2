package daemon

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// TestAReloadThatHangsDoesNotHoldUpTheEnd: the settings may be on a file system
// that does not answer any more.
func TestAReloadThatHangsDoesNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangup, answer := make(chan os.Signal, 1), make(chan struct{})
		asked := 0
		d := &daemon{log: telemetry.NewLogger(t.Output(), nil, telemetry.Text), Config: Config{
			Hangup: hangup,
			Reload: func() (*config.Config, error) {
				asked++
				<-answer
				return nil, errors.New("no answer")
			},
		}}
		defer d.log.Close()
		ctx, end := context.WithCancel(t.Context())
		ended := false
		go func() {
			d.reload(ctx)
			ended = true
		}()
		hangup <- syscall.SIGHUP
		synctest.Wait()
		end()
		synctest.Wait()
		if asked != 1 || !ended {
			t.Errorf("settings were read %d times, ended %t; want once and true", asked, ended)
		}
		close(answer)
	})
}
