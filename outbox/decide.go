package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/streamkeel/streamkeel/stream"
)

// ErrNothingToDecide says that no shard, or not this one, stands still for a reason that the decision answers.
var ErrNothingToDecide = errors.New("nothing to decide")

// RepublishLost has a shard that stands still because of a loss (ReasonLoss) publish again what Redis lost, whatever its
// size, as far as rows are kept. ReadStatus tells beforehand what would be sent. The relay that owns the shard
// carries it out within seconds. ErrNothingToDecide says that the shard does not stand still for that.
func RepublishLost(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return Schema{}.RepublishLost(ctx, pool, shard)
}

// RepublishLost is the package's RepublishLost, for this schema.
func (s Schema) RepublishLost(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return s.decide(ctx, pool, shard, decisionRepublish, ReasonLoss)
}

// AcceptLoss has a shard that stands still because of a loss go on without it: the lost events are in no
// stream any more, and groups and projections that had not read them never will.
func AcceptLoss(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return Schema{}.AcceptLoss(ctx, pool, shard)
}

// AcceptLoss is the package's AcceptLoss, for this schema.
func (s Schema) AcceptLoss(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return s.decide(ctx, pool, shard, decisionAcceptLoss, ReasonLoss)
}

// Resync has a shard that stands still because Redis is ahead (ReasonAhead) go on with batch numbers above what Redis
// holds. The events that Postgres lost stay in the streams; [Ghosts] lists them.
func Resync(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return Schema{}.Resync(ctx, pool, shard)
}

// Resync is the package's Resync, for this schema.
func (s Schema) Resync(ctx context.Context, pool *pgxpool.Pool, shard int) error {
	return s.decide(ctx, pool, shard, decisionResync, ReasonAhead)
}

const decideSQL = `UPDATE {schema}.relay_stop SET decision = $2::text WHERE shard = $1::smallint AND reason = $3::text`

func (s Schema) decide(ctx context.Context, pool *pgxpool.Pool, shard int, d decision, reason Reason) error {
	tag, err := s.database(pool).Exec(ctx, decideSQL, shard, string(d), string(reason))
	if err != nil {
		return fmt.Errorf("outbox: %s shard %d: %w", d, shard, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("outbox: %s shard %d: %w: it does not stand still for reason %q", d, shard, ErrNothingToDecide, reason)
	}
	return nil
}

// Failed is a row that was refused, or waits behind one.
type Failed struct {
	// Number names the row, and is the order in which rows come back.
	Number int64
	Shard  int
	Topic  stream.Topic // name and namespace
	// Parked says that later rows of the key wait behind it.
	Parked bool
	Reason string
	At     time.Time
	Event  stream.Event
	// Wanted says that somebody asked for it again.
	Wanted bool
}

// FailedFilter chooses failed rows; the zero value chooses all.
type FailedFilter struct {
	Topic, Namespace, Key string
	// After and Limit page through the list: rows behind this number, at most so many (default 100).
	After int64
	Limit int
}

const failedWhere = `
WHERE retry_batch IS NULL AND ($1::text = '' OR topic = $1::text) AND ($2::text = '' OR namespace = $2::text)
	AND ($3::text = '' OR key = $3::text)`

const (
	listFailedSQL = `
SELECT seq, shard, namespace, topic, parked, reason, failed_at, retry_wanted, key, event_id, type, source, data
FROM {schema}.outbox_failed` + failedWhere + ` AND seq > $4::bigint ORDER BY seq LIMIT $5::bigint`

	retryFailedSQL = `UPDATE {schema}.outbox_failed SET retry_wanted = true` + failedWhere + ` AND NOT retry_wanted`
)

// ListFailed lists the rows that were refused and are not published yet.
func ListFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) ([]Failed, error) {
	return Schema{}.ListFailed(ctx, pool, filter)
}

// ListFailed is the package's ListFailed, for this schema.
func (s Schema) ListFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) ([]Failed, error) {
	limit := filter.Limit
	if limit <= 0 {
		limit = 100
	}
	rows, err := s.database(pool).Query(ctx, listFailedSQL, filter.Topic, filter.Namespace, filter.Key, filter.After, limit)
	if err != nil {
		return nil, fmt.Errorf("outbox: list failed rows: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Failed, err error) {
		e := &f.Event
		err = row.Scan(&f.Number, &f.Shard, &f.Topic.Namespace, &f.Topic.Name, &f.Parked, &f.Reason, &f.At, &f.Wanted, &e.Key, &e.ID, &e.Type, &e.Source, &e.Data)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("outbox: list failed rows: %w", err)
	}
	return list, nil
}

// RetryFailed has the relays publish the chosen rows again, with new positions, in their order; of a parked key all
// rows come, and then the key goes on as if nothing had been. It returns how many rows were chosen.
// A row that is refused again is parked or set aside again.
func RetryFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) (int64, error) {
	return Schema{}.RetryFailed(ctx, pool, filter)
}

// RetryFailed is the package's RetryFailed, for this schema.
func (s Schema) RetryFailed(ctx context.Context, pool *pgxpool.Pool, filter FailedFilter) (int64, error) {
	tag, err := s.database(pool).Exec(ctx, retryFailedSQL, filter.Topic, filter.Namespace, filter.Key)
	if err != nil {
		return 0, fmt.Errorf("outbox: retry failed rows: %w", err)
	}
	return tag.RowsAffected(), nil
}
