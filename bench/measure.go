package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
)

// workload is one thing that every system does.
type workload struct {
	name, unit string
	base       string  // the system that ratios are against
	least      float64 // what the base reaches on an idle 2-core machine, or 0
	systems    []system
}

// system does the workload once and returns its figure.
type system struct {
	name string
	run  func(ctx context.Context, e *env) (float64, error)
}

// figure is one line of the output.
type figure struct {
	Workload string  `json:"workload"`
	System   string  `json:"system"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	Ratio    float64 `json:"ratio"`
	Base     string  `json:"base"`
	// Low and High are the lowest and highest ratio of a round.
	Low  float64 `json:"ratio_low"`
	High float64 `json:"ratio_high"`
	// Invalid says why the figure says nothing: the machine was busy.
	Invalid string `json:"invalid,omitempty"`
}

// validShare is the share of its idle rate that the base must reach.
const validShare = 0.7

// measure runs the systems in alternating rounds: what slows the machine down for a while
// slows all of them.
func (w workload) measure(ctx context.Context, e *env, rounds int, only string, progress io.Writer) ([]figure, error) {
	values := map[string][]float64{}
	var names []string
	for _, s := range w.systems {
		if only == "" || s.name == w.base || slices.Contains(strings.Split(only, ","), s.name) {
			names = append(names, s.name)
		}
	}
	for round := range rounds {
		systems := slices.Clone(w.systems)
		if round%2 == 1 {
			slices.Reverse(systems)
		}
		for _, s := range systems {
			if !slices.Contains(names, s.name) {
				continue
			}
			if err := e.rdb.ConfigResetStat(ctx).Err(); err != nil {
				return nil, err
			}
			runtime.GC()
			v, err := s.run(ctx, e)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			scripts, err := e.scripts(ctx)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(progress, "%s %s round %d: %.4g %s%s%s\n", w.name, s.name, round+1, v, w.unit, scripts, e.remark)
			e.remark = ""
			values[s.name] = append(values[s.name], v)
			if err := e.flush(ctx); err != nil {
				return nil, err
			}
		}
	}
	return w.figures(names, values), nil
}

// figures makes figures of what the systems reached in each round.
func (w workload) figures(names []string, values map[string][]float64) []figure {
	var figures []figure
	for _, name := range names {
		ratios := make([]float64, len(values[name]))
		for i := range ratios {
			ratios[i] = values[name][i] / values[w.base][i]
		}
		f := figure{
			Workload: w.name, System: name, Value: median(values[name]), Unit: w.unit,
			Ratio: median(ratios), Base: w.base, Low: slices.Min(ratios), High: slices.Max(ratios),
		}
		if base := median(values[w.base]); w.least > 0 && base < validShare*w.least {
			f.Invalid = fmt.Sprintf("%s reached %.0f %s, below %.0f%% of the %.0f of an idle machine", w.base, base, w.unit, 100*validShare, w.least)
		}
		figures = append(figures, f)
	}
	return figures
}

// scripts tells how long Redis took for a script on average, or "" where none ran.
func (e *env) scripts(ctx context.Context) (string, error) {
	info, err := e.rdb.Info(ctx, "commandstats").Result()
	for line := range strings.Lines(info) {
		var calls, usec, perCall float64
		if n, _ := fmt.Sscanf(line, "cmdstat_evalsha:calls=%f,usec=%f,usec_per_call=%f", &calls, &usec, &perCall); n == 3 {
			return fmt.Sprintf(" (%.0f scripts, %.3f ms of server time each)", calls, perCall/1000), err
		}
	}
	return "", err
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
