package tests

import (
	"testing"

	"github.com/streamkeel/streamkeel/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
