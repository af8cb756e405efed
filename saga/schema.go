package saga

import (
	"fmt"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/outbox"
)

// Schema reads the sagas in a schema of its own, beside others in the same database: its methods are the package's functions
// on its tables. Those functions themselves, and the zero value, read the schema "streamkeel".
type Schema struct{ name pgschema.Name }

// In returns the sagas in a schema, that of Config.Schema. The name must be [a-z_][a-z0-9_]{0,62} and none of Postgres's
// own; an empty one is "streamkeel".
func In(schema string) (Schema, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return Schema{}, fmt.Errorf("saga: %w", err)
	}
	return Schema{name}, nil
}

// outboxIn returns the outbox in the same schema as the sagas.
func outboxIn(schema pgschema.Name) outbox.Schema {
	out, _ := outbox.In(schema.String()) // a Name is valid
	return out
}
