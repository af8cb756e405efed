package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// BacklogConfig configures a [Backlog]. The zero value is the safe default.
type BacklogConfig struct {
	// Namespaces to look at. Default stream.DefaultNamespace.
	Namespaces []string
	// Every is how often Redis is asked at the most: scrapes in between get the same answer.
	// Default 5 seconds. A look costs a pipeline of some ten commands for each partition of
	// each group.
	Every time.Duration
	// Timeout bounds a look. Default 5 seconds: below what Prometheus waits for.
	Timeout time.Duration
	// Logger gets what went wrong. Default slog.Default().
	Logger *slog.Logger
}

// Backlog tells, at each scrape, what is left to do in Redis, for every topic and group in the
// registry. It is a prometheus.Collector.
//
// What is not known is absent, never 0: a lag that Redis cannot tell, and everything of a
// namespace whose look failed (streamkeel_backlog_up is 0 then).
type Backlog struct {
	rdb    redis.UniversalClient
	config BacklogConfig
	log    *quiet.Log

	mu   sync.Mutex // held during a look: scrapes at the same time share one
	at   time.Time
	last []prometheus.Metric
}

// NewBacklog returns a collector that asks through rdb. The caller keeps rdb and closes it.
// The error has every fault of the config.
func NewBacklog(rdb redis.UniversalClient, config BacklogConfig) (*Backlog, error) {
	if len(config.Namespaces) == 0 {
		config.Namespaces = []string{stream.DefaultNamespace}
	}
	if config.Every == 0 {
		config.Every = 5 * time.Second
	}
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Second
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if rdb == nil {
		fault("the Redis client is nil")
	}
	for _, ns := range config.Namespaces {
		if !stream.ValidName(ns) {
			fault("Namespaces: %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", ns)
		}
	}
	if config.Every < 0 || config.Timeout < 0 {
		fault("Every %s and Timeout %s must not be negative", config.Every, config.Timeout)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("telemetry: invalid backlog config: %w", errors.Join(faults...))
	}
	return &Backlog{rdb: rdb, config: config, log: quiet.New(config.Logger)}, nil
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(prefix, "", name), help, labels, nil)
}

var (
	upDesc      = desc("backlog_up", "1 where the last look at a namespace's backlog succeeded.", "namespace")
	secondsDesc = desc("backlog_seconds", "How long the last look at a namespace's backlog took.", "namespace")
	topicsDesc  = desc("topics", "Topics in the registry.", "namespace")
	entriesDesc = desc("topic_entries", "Entries in a topic's streams, finished ones too.", "namespace", "topic")

	groupLabels   = []string{"namespace", "topic", "group"}
	lagDesc       = desc("group_lag", "Entries that were not delivered yet; absent where Redis cannot tell.", groupLabels...)
	pendingDesc   = desc("group_pending", "Deliveries that are not settled.", groupLabels...)
	oldestDesc    = desc("group_oldest_pending_seconds", "For how long the oldest of them has been in its stream.", groupLabels...)
	retryDesc     = desc("group_retry_entries", "Entries in the retry streams.", groupLabels...)
	dueDesc       = desc("group_due_entries", "Retries that wait for their time.", groupLabels...)
	overdueDesc   = desc("group_due_overdue_seconds", "For how long the earliest retry has been due.", groupLabels...)
	lettersDesc   = desc("group_letters", "Dead letters.", groupLabels...)
	consumersDesc = desc("group_consumers", "Consumers that were heard of lately.", groupLabels...)
	missingDesc   = desc("group_missing_partitions", "Partitions whose stream lacks the group; they are not trimmed.", groupLabels...)
)

// Describe implements prometheus.Collector.
func (b *Backlog) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		upDesc, secondsDesc, topicsDesc, entriesDesc, lagDesc, pendingDesc, oldestDesc, retryDesc, dueDesc,
		overdueDesc, lettersDesc, consumersDesc, missingDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (b *Backlog) Collect(ch chan<- prometheus.Metric) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at.IsZero() || time.Since(b.at) >= b.config.Every {
		b.look()
	}
	for _, m := range b.last {
		ch <- m
	}
}

func (b *Backlog) look() {
	b.last = nil
	for _, ns := range b.config.Namespaces {
		ctx, cancel := context.WithTimeout(context.Background(), b.config.Timeout) // Collect has no context
		began := time.Now()
		metrics, err := b.namespace(ctx, ns)
		cancel()
		up := 1.0
		if err != nil {
			up = 0
			b.log.Error(context.Background(), "backlog not known", ns, err)
		}
		b.last = append(b.last, metrics...)
		b.last = append(b.last, gauge(upDesc, up, ns), gauge(secondsDesc, time.Since(began).Seconds(), ns))
	}
	b.at = time.Now()
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// namespace looks at one namespace. A stream that cannot be inspected makes the numbers of its
// group unknown, and an error, but not those of others.
func (b *Backlog) namespace(ctx context.Context, ns string) ([]prometheus.Metric, error) {
	topics, err := stream.Topics(ctx, b.rdb, ns)
	if err != nil {
		return nil, err
	}
	var faults []error
	metrics := []prometheus.Metric{gauge(topicsDesc, float64(len(topics)), ns)}
	for _, t := range topics {
		groups, err := stream.Groups(ctx, b.rdb, t)
		if err != nil {
			return nil, err
		}
		length, err := b.length(ctx, t)
		if err != nil {
			faults = append(faults, err)
		} else {
			metrics = append(metrics, gauge(entriesDesc, float64(length), ns, t.Name))
		}
		for _, g := range groups {
			keys := make([]pel.Keys, t.Count())
			for p := range keys {
				keys[p] = pel.KeysOf(t.StreamKey(p), g.Name)
			}
			all, err := pel.Inspect(ctx, b.rdb, keys...)
			if err != nil {
				faults = append(faults, err)
				continue
			}
			metrics = append(metrics, groupMetrics(pel.Sum(all...), ns, t.Name, g.Name)...)
		}
	}
	return metrics, errors.Join(faults...)
}

// length returns how many entries a topic's streams hold.
func (b *Backlog) length(ctx context.Context, t stream.Topic) (total int64, err error) {
	pipe := b.rdb.Pipeline()
	var lengths []*redis.IntCmd
	for _, key := range t.StreamKeys() {
		lengths = append(lengths, pipe.XLen(ctx, key))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, fmt.Errorf("telemetry: length of topic %s: %w", t.Name, err)
	}
	for _, n := range lengths {
		total += n.Val()
	}
	return total, nil
}

func groupMetrics(t pel.Totals, labels ...string) []prometheus.Metric {
	metrics := []prometheus.Metric{
		gauge(pendingDesc, float64(t.Pending), labels...),
		gauge(oldestDesc, t.Oldest.Seconds(), labels...),
		gauge(retryDesc, float64(t.Retry), labels...),
		gauge(dueDesc, float64(t.Due), labels...),
		gauge(overdueDesc, t.Overdue.Seconds(), labels...),
		gauge(lettersDesc, float64(t.Letters), labels...),
		gauge(consumersDesc, float64(t.Consumers), labels...),
		gauge(missingDesc, float64(t.Missing), labels...),
	}
	if t.LagKnown {
		metrics = append(metrics, gauge(lagDesc, float64(t.Lag), labels...))
	}
	return metrics
}
