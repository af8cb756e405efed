package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// steer is a command that does something to a group.
type steer struct {
	a            *app
	topic, group string
	partition    int
	yes          bool
}

// steerDocument is what the commands that steer a group print with --json.
type steerDocument struct {
	Topic      string `json:"topic"`
	Group      string `json:"group"`
	Done       string `json:"done"` // paused, resumed, sought, deleted
	Partitions []int  `json:"partitions"`
}

func (s *steer) command(use, short, long string, fn func(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if s.topic == "" || s.group == "" {
				return command.Unfitf("--topic and --group are required")
			}
			return nil
		},
		RunE: s.a.withRedis(func(ctx context.Context, rdb redis.UniversalClient, _ []string) error {
			return s.a.eachGroup(ctx, rdb, s.topic, s.group, func(t stream.Topic, g stream.Group) error { return fn(ctx, rdb, t, g) })
		}),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&s.topic, "topic", "", "topic (required)")
	flags.StringVar(&s.group, "group", "", "group (required)")
	return cmd
}

// keys returns the chosen partitions, and what the group has there.
func (s *steer) keys(t stream.Topic) (partitions []int, keys []pel.Keys, err error) {
	if s.partition >= t.Count() {
		return nil, nil, command.Unfitf("--partition %d: topic %s has %d partitions, 0 to %d", s.partition, t.Name, t.Count(), t.Count()-1)
	}
	for p := range t.Count() {
		if s.partition < 0 || p == s.partition {
			partitions = append(partitions, p)
			keys = append(keys, pel.KeysOf(t.StreamKey(p), s.group))
		}
	}
	return partitions, keys, nil
}

func (s *steer) done(done string, partitions []int) error {
	document := steerDocument{Topic: s.topic, Group: s.group, Done: done, Partitions: partitions}
	return s.a.print(document, func(w io.Writer) {
		fmt.Fprintf(w, "group %s, topic %s: %s at %d partitions\n", s.group, s.topic, done, len(partitions))
	})
}

// consuming refuses a projection, whose position stands in Postgres.
func consuming(g stream.Group, what string) error {
	if g.Kind == stream.GroupProjection {
		return command.Unfitf("group %s is a projection, whose position stands in its database: it is not %s here", g.Name, what)
	}
	return nil
}

func newGroupsPause(a *app, use, short, done string, apply func(context.Context, redis.UniversalClient, ...pel.Keys) error) *cobra.Command {
	s := &steer{a: a}
	cmd := s.command(use, short, short+". It takes effect within a second.", func(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) error {
		if err := consuming(g, done); err != nil {
			return err
		}
		partitions, keys, err := s.keys(t)
		if err == nil {
			err = apply(ctx, rdb, keys...)
		}
		if err != nil {
			return err
		}
		return s.done(done, partitions)
	})
	cmd.Flags().IntVar(&s.partition, "partition", -1, "only at this partition (default all)")
	return cmd
}

func newGroupsSeek(a *app) *cobra.Command {
	s := &steer{a: a}
	var to string
	cmd := s.command("seek", "Move a group back or forth",
		"Move a group back or forth: what lies behind the place is handed over next, whether it was before or not. What is pending or waits\n"+
			"for a retry is handled all the same. Pause the group before, where an event handled twice matters.",
		func(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, g stream.Group) error {
			if err := consuming(g, "moved"); err != nil {
				return err
			}
			place, err := parsePlace(to, time.Now())
			if err != nil {
				return command.Unfitf("--to %w", err)
			}
			partitions, keys, err := s.keys(t)
			if err != nil {
				return err
			}
			if err := a.confirm(s.yes, fmt.Sprintf("move group %s, topic %s, to %s", s.group, s.topic, to), ""); err != nil {
				return err
			}
			for _, k := range keys {
				if err := pel.Seek(ctx, rdb, k, place); err != nil {
					return err
				}
			}
			return s.done("sought", partitions)
		})
	cmd.Flags().StringVar(&to, "to", "", "start, end, an ID behind which to begin, or a time or an age at which (required)")
	cmd.Flags().IntVar(&s.partition, "partition", -1, "only at this partition (default all)")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	return cmd
}

// parsePlace returns the ID behind which a group is to begin.
func parsePlace(s string, now time.Time) (string, error) {
	switch s {
	case "start":
		return "0", nil
	case "end":
		return "$", nil
	}
	if id, err := stream.ParseID(s); err == nil {
		return id.String(), nil
	}
	at, err := parseTime(s, now)
	if err != nil || at.IsZero() {
		return "", fmt.Errorf("%.60q is neither start, end, an ID (1700000000000-0), a time (2026-01-31T09:00:00Z, 2026-01-31) nor an age (90m, 36h)", s)
	}
	return stream.ID{Ms: uint64(max(at.UnixMilli()-1, 0)), Seq: ^uint64(0)}.String(), nil
}

func newGroupsDelete(a *app) *cobra.Command {
	s := &steer{a: a, partition: -1}
	var cfg pel.DeleteConfig
	cmd := s.command("delete", "Delete a group that is gone for good, so that it holds retention no longer",
		"Delete a group that is gone for good: its position, what is pending, its retries, and its place in the registry, so that it\n"+
			"holds retention no longer. It is refused while consumers of the group live. Its letters stay.",
		func(ctx context.Context, rdb redis.UniversalClient, t stream.Topic, _ stream.Group) error {
			if err := a.confirm(s.yes, fmt.Sprintf("delete group %s, topic %s", s.group, s.topic), ", for good"); err != nil {
				return err
			}
			err := pel.Delete(ctx, rdb, t, s.group, cfg)
			if errors.Is(err, pel.ErrGroupInUse) {
				return command.Unfitf("%w; stop them, or delete with --force", err)
			}
			if err != nil {
				return err
			}
			partitions, _, err := s.keys(t)
			if err != nil {
				return err
			}
			return s.done("deleted", partitions)
		})
	cmd.Flags().BoolVar(&cfg.Letters, "letters", false, "delete its dead letters, too")
	cmd.Flags().BoolVar(&cfg.Force, "force", false, "also while consumers live; they make the group anew, at its start")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	return cmd
}
