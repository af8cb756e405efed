package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// The memory of a consumer's process must stay flat: while it works off a backlog, and for
// minutes at full rate. `bench memory` shows it.

// memoryBound is what the process may hold above what it held before its consumer began.
const memoryBound = 64 << 20

func runMemory(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("bench memory", flag.ContinueOnError)
	flags.SetOutput(errOut)
	minutes := flags.Float64("minutes", 10, "how long at full rate, behind the backlog")
	backlog := flags.Int("backlog", 1_000_000, "entries that wait when the consumer begins")
	ordered := flags.Bool("ordered", false, "the group is ordered")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *minutes < 0 || *backlog < 0 || flags.NArg() > 0 {
		return errors.New("bench memory: -minutes and -backlog must not be negative, and there is nothing but flags")
	}
	e, err := newEnv(ctx, 0) // one batch of events, published again and again
	if err != nil {
		return err
	}
	defer e.close()
	defer func() { _ = e.flush(context.WithoutCancel(ctx)) }() // what stays would refuse the next run
	topic := e.topic()
	for n := 0; n < *backlog; n += len(e.events) {
		if err := handPublishBatch(ctx, e.rdb, topic.StreamKey(0), e.events); err != nil {
			return err
		}
	}
	debug.FreeOSMemory()
	start, most := heldMemory(), uint64(0)
	var handled atomic.Int64
	stop, err := e.consumer(ctx, topic, consumergroup.Config{Ordered: *ordered}, func(stream.Event) { handled.Add(1) })
	if err != nil {
		return err
	}
	report := func(what string, began time.Time, before int64) {
		n := handled.Load() - before
		fmt.Fprintf(out, "%s: %d events in %s, %.0f/s; at most %.1f MiB above the %.1f MiB of the start\n",
			what, n, time.Since(began).Round(time.Second), float64(n)/time.Since(began).Seconds(), mib(most-min(start, most)), mib(start))
	}
	sample := func() { most = max(most, heldMemory()) }

	began := time.Now()
	for handled.Load() < int64(*backlog) {
		sample()
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return errors.Join(err, stop())
		}
	}
	report("backlog", began, 0)

	began = time.Now()
	before, published := handled.Load(), handled.Load()
	for time.Since(began) < time.Duration(*minutes*float64(time.Minute)) {
		sample()
		if published-handled.Load() > 20*batchSize { // the consumer is the slower one
			if err := sleep(ctx, time.Millisecond); err != nil {
				return errors.Join(err, stop())
			}
			continue
		}
		err := handPublishBatch(ctx, e.rdb, topic.StreamKey(0), e.events)
		if err == nil { // everything but the newest was handled; Redis would fill up
			err = e.rdb.XTrimMaxLenApprox(ctx, topic.StreamKey(0), 100*batchSize, 0).Err()
		}
		if err != nil {
			return errors.Join(err, stop())
		}
		published += int64(len(e.events))
	}
	report("full rate", began, before)
	if err := stop(); err != nil {
		return err
	}
	if most > start+memoryBound {
		return fmt.Errorf("the process held %.1f MiB more than at its start, and %.0f are allowed", mib(most-start), mib(memoryBound))
	}
	return nil
}

// heldMemory is what the process has of the system.
func heldMemory() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
