package tests

import (
	"os"
	"testing"

	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) {
	if order := os.Getenv(relayVar); order != "" {
		relayMain(order)
	}
	testenv.Main(m)
}
