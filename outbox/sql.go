package outbox

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// schema is where the tables live.
const schema = "streamkeel"

// query returns a statement with the schema's name, quoted, in place of {schema}. Every statement of this
// package passes here.
func query(text string) string {
	return strings.ReplaceAll(text, "{schema}", pgx.Identifier{schema}.Sanitize())
}
