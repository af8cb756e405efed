package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/streamkeel/streamkeel/stream"
)

const lockSQL = `SELECT pg_advisory_xact_lock($1)`

// Lock makes the transaction wait for its turn with the keys: it returns when every other transaction that
// locked one of them has ended, and holds them until this one ends. A transaction that calls it before it
// publishes events of a key has them in the order of the commits. Whoever updates a row of the key first has that
// order already, and needs no Lock.
//
// All of a transaction's keys belong into one call: it takes them in one order, whatever the order of the
// arguments, and so makes no deadlock with another, in a round trip each. It is a transaction-scoped advisory lock
// on a hash of namespace, topic and key.
func Lock(ctx context.Context, tx Tx, topic stream.Topic, keys ...string) error {
	numbers := make([]int64, len(keys))
	for i, key := range keys {
		sum := sha256.Sum256([]byte("streamkeel outbox\x00" + topic.NamespaceName() + "\x00" + topic.Name + "\x00" + key))
		numbers[i] = int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // any number will do
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		if _, err := tx.Exec(ctx, lockSQL, number); err != nil {
			return fmt.Errorf("outbox: lock keys of %s: %w", topic.Name, err)
		}
	}
	return nil
}
