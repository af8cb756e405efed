package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/quiet"
	"github.com/streamkeel/streamkeel/stream"
)

// targets finds what to look after in the registries of the namespaces.
type targets struct {
	rdb        redis.UniversalClient
	namespaces []string
	log        *quiet.Log

	mu     sync.Mutex
	known  map[string][]consumergroup.Target // by namespace: as its registry last said
	err    error                             // why there is nothing to do, or not everything is known
	counts string                            // what was logged last
}

func newTargets(rdb redis.UniversalClient, namespaces []string, log *slog.Logger) *targets {
	return &targets{rdb: rdb, namespaces: namespaces, log: quiet.New(log), known: map[string][]consumergroup.Target{}}
}

// check reads each registry once. Its error is worth an end at the start.
func (t *targets) check(ctx context.Context) error {
	for _, ns := range t.namespaces {
		if _, err := t.read(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

// Get returns the groups of every namespace. Of a namespace whose registry cannot be read it
// returns what was known before: one that is broken does not stop the others.
func (t *targets) Get(ctx context.Context) ([]consumergroup.Target, error) {
	found := map[string][]consumergroup.Target{}
	var faults []error
	for _, ns := range t.namespaces {
		targets, err := t.read(ctx, ns)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		found[ns] = targets
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []consumergroup.Target
	for _, ns := range t.namespaces {
		if targets, ok := found[ns]; ok {
			t.known[ns] = targets
		}
		all = append(all, t.known[ns]...)
	}
	err := errors.Join(faults...)
	t.err = err
	if err == nil && len(all) == 0 {
		t.err = fmt.Errorf("the registry is empty: no topic and group is declared in %s yet; they come with the first consumer or projection", t.places())
	}
	if err == nil {
		t.logChange(ctx, all)
		return all, nil
	}
	if len(found) == 0 {
		return nil, err // Redis is away; Upkeep keeps what it had
	}
	t.log.Error(ctx, "registry not readable", "", err)
	return all, nil
}

func (t *targets) read(ctx context.Context, ns string) ([]consumergroup.Target, error) {
	topics, err := stream.Topics(ctx, t.rdb, ns)
	if err != nil {
		return nil, err
	}
	var all []consumergroup.Target
	for _, topic := range topics {
		groups, err := stream.Groups(ctx, t.rdb, topic)
		if err != nil {
			return nil, err
		}
		for _, g := range groups {
			all = append(all, consumergroup.Target{Topic: topic, Group: g})
		}
	}
	return all, nil
}

// logChange says what is looked after whenever that changes.
func (t *targets) logChange(ctx context.Context, all []consumergroup.Target) {
	topics := map[string]bool{}
	for _, one := range all {
		topics[one.Topic.NamespaceName()+":"+one.Topic.Name] = true
	}
	counts := fmt.Sprint(len(topics), len(all))
	if counts == t.counts {
		return
	}
	t.counts = counts
	if len(all) == 0 {
		t.log.Warn(ctx, "the registry is empty: nothing to look after yet", t.places())
		return
	}
	t.log.Info(ctx, "looking after groups", "topics", len(topics), "groups", len(all))
}

func (t *targets) places() string {
	if len(t.namespaces) == 1 {
		return "namespace " + t.namespaces[0]
	}
	return "the namespaces " + strings.Join(t.namespaces, ", ")
}

// Err returns why the daemon is not ready.
func (t *targets) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
