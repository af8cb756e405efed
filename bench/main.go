// Command bench measures Streamkeel against the loop that a good engineer would write by
// hand, and against other libraries, in the same run: figures are ratios. It needs a
// Redis (and for some workloads a Postgres) of its own: `make bench` brings them up.
//
// `make bench ARGS=memory` shows instead that a consumer's memory stays flat.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
)

// tableRow has the columns of the table, the widest names fitting.
const tableRow = "%-20s %-24s %12s %-10s %6s  %-24s %s\n"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) > 0 && args[0] == "memory" {
		return runMemory(ctx, args[1:], out, errOut)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(errOut)
	asJSON := flags.Bool("json", false, "print one JSON object a line")
	only := flags.String("only", "", "workloads to run, with commas between (default: all)")
	systems := flags.String("systems", "", "systems to run, with commas between (default: all)")
	rounds := flags.Int("rounds", 5, "alternating rounds")
	scale := flags.Float64("scale", 1, "how much a run does, 0 to 1: less than 1 is for trying out")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(workloads(), *only)
	switch {
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("%q is no flag; -help lists them", flags.Arg(0))
	case *rounds < 1:
		return fmt.Errorf("-rounds %d must be 1 or more", *rounds)
	case unknownSystem(chosen, *systems) != "":
		return fmt.Errorf("no system %q does these workloads", unknownSystem(chosen, *systems))
	case !(*scale > 0 && *scale <= 1):
		return fmt.Errorf("-scale %g must be more than 0, and 1 at the most", *scale)
	}
	e, err := newEnv(ctx, *scale)
	if err != nil {
		return err
	}
	defer e.close()
	if !*asJSON {
		fmt.Fprintf(out, tableRow, "WORKLOAD", "SYSTEM", "VALUE", "UNIT", "RATIO", "BASE", "SPREAD")
	}
	for _, w := range chosen {
		figures, err := w.measure(ctx, e, *rounds, *systems, errOut)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		for _, f := range figures {
			if *asJSON {
				if err := json.NewEncoder(out).Encode(f); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(out, tableRow, f.Workload, f.System, fmt.Sprintf("%.5g", f.Value), f.Unit, fmt.Sprintf("%.2f", f.Ratio), f.Base,
				fmt.Sprintf("%.2f to %.2f", f.Low, f.High))
			if f.Invalid != "" {
				fmt.Fprintln(out, "  INVALID:", f.Invalid)
			}
		}
	}
	return nil
}

// unknownSystem returns the first of the names that none of the workloads has.
func unknownSystem(chosen []workload, names string) string {
	known := map[string]bool{"": true}
	for _, w := range chosen {
		for _, s := range w.systems {
			known[s.name] = true
		}
	}
	for _, name := range strings.Split(names, ",") {
		if !known[name] {
			return name
		}
	}
	return ""
}

// choose returns the workloads of these names, or all.
func choose(all []workload, names string) ([]workload, error) {
	if names == "" {
		return all, nil
	}
	var chosen []workload
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(all, func(w workload) bool { return w.name == name })
		if i < 0 {
			var known []string
			for _, w := range all {
				known = append(known, w.name)
			}
			return nil, fmt.Errorf("there is no workload %q; there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
