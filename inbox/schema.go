package inbox

import (
	"fmt"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

// Schema is an inbox in a schema of its own, beside others in the same database: its methods are the package's functions
// on its table. Those functions themselves, and the zero value, work in the schema "streamkeel".
type Schema struct{ name pgschema.Name }

// In returns the inbox in a schema, which migrations.In(schema).Up makes. The name must be
// [a-z_][a-z0-9_]{0,62} and none of Postgres's own; an empty one is "streamkeel".
func In(schema string) (Schema, error) {
	name, err := pgschema.Parse(schema)
	if err != nil {
		return Schema{}, fmt.Errorf("inbox: %w", err)
	}
	return Schema{name}, nil
}
