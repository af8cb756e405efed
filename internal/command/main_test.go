package command

import (
	"testing"

	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// canary stands for a password. It must never be seen anywhere.
const canary = "canary-9f/3#x?y@z%"
