package main

import "github.com/streamkeel/streamkeel/outbox"

// The systems that are measured.
const (
	streamkeel   = "streamkeel"
	handwritten  = "handwritten"
	watermills   = "watermill"
	watermillSQL = "watermill-sql"
	asynqs       = "asynq"
	// With the relay woken after each commit, instead of by its poll.
	streamkeelWoken = "streamkeel woken"
	// Our own figures as bases of others.
	ownBatch   = "streamkeel publish-batch"
	ownConsume = "streamkeel consume"
	// For what the outbox costs transactions.
	plainTable    = "plain table"
	withoutRelays = "streamkeel, relay stopped"
	// On an empty outbox.
	ownRelay = "streamkeel relay"
	// At the start of a long transaction.
	openJustNow = "streamkeel, just begun"
)

// What the hand-written loops reach on an idle machine with 2 cores, in events a second.
const (
	idleBatch   = 127_000
	idleConsume = 140_000
)

func workloads() []workload {
	return []workload{
		{"publish-one", "events/s", handwritten, 0, []system{{handwritten, handOne}, {streamkeel, ourOne}, {watermills, watermillPublish}}},
		{"publish-batch", "events/s", handwritten, idleBatch, []system{{handwritten, handBatch}, {streamkeel, ourBatch}, {watermills, watermillPublish}}},
		{"publish-batch-dedup", "events/s", handwritten, idleBatch, []system{{handwritten, handBatch}, {streamkeel, ourBatchDedup}}},
		{"publish-concurrent", "events/s", ownBatch, 0, []system{{ownBatch, ourBatch}, {streamkeel, ourConcurrent}, {watermills, watermillConcurrent}}},
		{"read", "events/s", handwritten, 0, []system{{handwritten, handReadAll}, {streamkeel, ourReadAll}}},
		{"consume", "events/s", handwritten, idleConsume, []system{
			{handwritten, handConsumeAll}, {streamkeel, ourConsumeAll}, {watermills, watermillConsume}, {asynqs, asynqConsume},
		}},
		{"consume-ordered", "events/s", ownConsume, 0, []system{{ownConsume, ourConsumeAll}, {streamkeel, ourConsumeOrdered}}},
		{"latency-p50", "ms", handwritten, 0, []system{{handwritten, handLatency(50)}, {streamkeel, ourLatency(50)}}},
		{"latency-p99", "ms", handwritten, 0, []system{{handwritten, handLatency(99)}, {streamkeel, ourLatency(99)}}},
		{"relay", "rows/s", handwritten, idleRelay, []system{{handwritten, handRelay}, {streamkeel, ourRelay}, {watermillSQL, watermillRelay}}},
		{"relay-large", "rows/s", ownRelay, 0, []system{{ownRelay, ourRelay}, {streamkeel, ourRelayOverKept}}},
		{"commit-p50", "ms", handwritten, 0, []system{{handwritten, handCommit(50)}, {streamkeel, ourCommit(50, noWake)}, {streamkeelWoken, ourCommit(50, outbox.Wake)}}},
		{"commit-p99", "ms", handwritten, 0, []system{{handwritten, handCommit(99)}, {streamkeel, ourCommit(99, noWake)}, {streamkeelWoken, ourCommit(99, outbox.Wake)}}},
		{"open-transaction", "ms", openJustNow, 0, []system{{openJustNow, besideOpen(1)}, {streamkeel, besideOpen(openParts)}}},
		{"business-cost", "tx/s", plainTable, 0, []system{
			{plainTable, businessCost(insertPlain, false)}, {streamkeel, businessCost("", true)}, {withoutRelays, businessCost("", false)},
		}},
		{"reclaim", "entries/s", handwritten, 0, []system{{handwritten, handReclaim}, {streamkeel, ourReclaim}}},
	}
}
