package testenv

import (
	"fmt"
	"slices"
	"testing"
)

// Example returns what RedisURL takes in an example, which has no test. A failure panics.
func Example() testing.TB { return &example{} }

// StartExample returns what everything in this package takes, in an example, and what ends it.
func StartExample() (t testing.TB, end func()) {
	e := &example{}
	return e, func() {
		for _, fn := range slices.Backward(e.cleanups) {
			fn()
		}
	}
}

type example struct {
	testing.TB
	cleanups []func()
}

func (*example) Helper() {}

func (*example) Logf(string, ...any) {}

func (*example) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (*example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (e *example) Cleanup(fn func()) { e.cleanups = append(e.cleanups, fn) }
