package main

import (
	"os"
	"testing"
)

func TestProf(t *testing.T) {
	e, err := newEnv(t.Context())
	if err != nil {
		t.Skip(err)
	}
	for _, w := range workloads() {
		if w.name != os.Getenv("W") {
			continue
		}
		for _, s := range w.systems {
			if s.name == os.Getenv("S") {
				for range 3 {
					v, err := s.run(t.Context(), e)
					t.Log(v, err)
					e.flush(t.Context())
				}
			}
		}
	}
}
