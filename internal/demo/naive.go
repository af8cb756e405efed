package demo

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

const nextBySequence = `
SELECT id, topic, event_id, type, source, key, time, content_type, coalesce(correlation_id, ''), coalesce(causation_id, ''), attributes, data
FROM streamkeel.outbox WHERE id > $1 ORDER BY id LIMIT 500`

// relayBySequence is the relay that everybody writes first: it publishes the rows with an id
// above the highest that it has seen. What a transaction commits after one with higher ids it
// never sees.
func (d *Demo) relayBySequence(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for last := int64(0); ; {
			n, err := d.relayAbove(ctx, &last)
			if err != nil && ctx.Err() == nil {
				d.say("the broken relay: %v", err)
			}
			if n == 0 && !redisx.Pause(ctx, 5*time.Millisecond) {
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (d *Demo) relayAbove(ctx context.Context, last *int64) (n int, err error) {
	publisher, err := stream.NewPublisher(d.rdb, stream.PublisherConfig{})
	if err != nil {
		return 0, err
	}
	rows, err := d.pool.Query(ctx, nextBySequence, *last)
	if err != nil {
		return 0, err
	}
	batches := map[string][]stream.Event{}
	above := *last
	var topic string
	var e stream.Event
	_, err = pgx.ForEachRow(rows, []any{
		&above, &topic, &e.ID, &e.Type, &e.Source, &e.Key, &e.Time, &e.ContentType, &e.CorrelationID, &e.CausationID, &e.Attributes, &e.Data,
	}, func() error {
		batches[topic] = append(batches[topic], e)
		e = stream.Event{}
		n++
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, topic := range []stream.Topic{d.topics.webhooks, d.topics.orders} {
		if _, err := publisher.PublishBatch(ctx, topic, batches[topic.Name]); err != nil {
			return 0, err
		}
	}
	*last = above
	return n, nil
}
