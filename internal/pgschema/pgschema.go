// Package pgschema names the schema of Postgres that holds Streamkeel's tables.
package pgschema

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Default is the schema where none is named.
const Default = "streamkeel"

// Name is the name of a schema, and valid. The zero value is Default.
type Name struct{ name string }

var valid = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// Parse returns the name, or says why it is none. An empty one is Default.
func Parse(name string) (Name, error) {
	switch {
	case name == "":
		return Name{}, nil
	case !valid.MatchString(name):
		return Name{}, fmt.Errorf("schema %.80q is not [a-z_][a-z0-9_]{0,62}", name)
	case strings.HasPrefix(name, "pg_"), name == "information_schema":
		return Name{}, fmt.Errorf("schema %q belongs to Postgres: choose a name that does not begin with pg_ and is not information_schema", name)
	}
	return Name{name}, nil
}

func (n Name) String() string {
	if n.name == "" {
		return Default
	}
	return n.name
}

// Quoted returns the name as it stands in statements.
func (n Name) Quoted() string { return pgx.Identifier{n.String()}.Sanitize() }

// SQL returns a statement with the name, quoted, in place of {schema}.
func (n Name) SQL(text string) string { return strings.ReplaceAll(text, "{schema}", n.Quoted()) }
