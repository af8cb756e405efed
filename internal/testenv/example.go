package testenv

import (
	"fmt"
	"testing"
)

// Example returns what RedisURL takes in an example, which has no test. A failure panics.
func Example() testing.TB { return example{} }

type example struct{ testing.TB }

func (example) Helper() {}

func (example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
