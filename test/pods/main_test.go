package pods

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv(watchVariable) != "" {
		watch()
		return
	}
	os.Exit(m.Run())
}
