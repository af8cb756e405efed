// Command bench measures Streamkeel against the loop that a good engineer would write by
// hand, and against other libraries, in the same run: figures are ratios. It needs a
// Redis (and for some workloads a Postgres) of its own: `make bench` brings them up.
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
	"text/tabwriter"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(errOut)
	asJSON := flags.Bool("json", false, "print one JSON object a line")
	only := flags.String("only", "", "workloads to run, with commas between (default: all)")
	systems := flags.String("systems", "", "systems to run, with commas between (default: all)")
	rounds := flags.Int("rounds", 5, "alternating rounds")
	if err := flags.Parse(args); err != nil {
		return err
	}
	e, err := newEnv(ctx)
	if err != nil {
		return err
	}
	defer e.close()
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if !*asJSON {
		fmt.Fprintln(table, "WORKLOAD\tSYSTEM\tVALUE\tUNIT\tRATIO\tBASE\tSPREAD\t")
	}
	for _, w := range workloads() {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), w.name) {
			continue
		}
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
			note := ""
			if f.Invalid != "" {
				note = "INVALID: " + f.Invalid
			}
			fmt.Fprintf(table, "%s\t%s\t%.4g\t%s\t%.2f\t%s\t%.2f to %.2f\t%s\n", f.Workload, f.System, f.Value, f.Unit, f.Ratio, f.Base, f.Low, f.High, note)
		}
		_ = table.Flush()
	}
	return nil
}
