package outbox

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/streamkeel/streamkeel/stream"
)

// bulkTx is a transaction that can COPY, as pgx's can and database/sql's cannot.
type bulkTx interface {
	Tx
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
}

var copyColumns = append([]string{"shard"}, strings.Fields(strings.ReplaceAll(eventColumns, ",", " "))...)

// insertCopy writes the events by COPY, which takes a few round trips more than a statement, and less time for
// each of many rows.
func (s Schema) insertCopy(ctx context.Context, tx bulkTx, at shardsOf, topic stream.Topic, events []stream.Event) error {
	row := func(i int) ([]any, error) {
		e := &events[i]
		attributes, err := attributesOf(e)
		partition := topic.Partition(e)
		return []any{
			(at.first + partition) % at.shards, topic.NamespaceName(), topic.Name, partition, e.Key, e.ID, e.Type, e.Source, nullTime(e.Time),
			nullText(e.ContentType), nullText(e.Schema), nullText(e.CorrelationID), nullText(e.CausationID), nullText(e.TraceParent),
			nullTime(e.Expires), nullText(attributes), notNil(e.Data),
		}, err
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{s.name.String(), "outbox_row"}, copyColumns, pgx.CopyFromSlice(len(events), row))
	return err
}

func nullText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
