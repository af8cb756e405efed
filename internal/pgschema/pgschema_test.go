package pgschema_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/pgschema"
)

func TestNamesThatAreNoSchemasAreRefused(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]string{
		"Billing":                `schema "Billing" is not [a-z_][a-z0-9_]{0,62}`,
		"1st":                    "is not [a-z_]",
		" ":                      "is not [a-z_]",
		"billing\n":              "is not [a-z_]",
		"billing.outbox":         "is not [a-z_]",
		`b"; DROP TABLE t; --`:   "is not [a-z_]",
		"zahlung_ä":              "is not [a-z_]",
		strings.Repeat("a", 64):  "is not [a-z_]",
		strings.Repeat("x", 1e6): "is not [a-z_]",
		"pg_temp":                "belongs to Postgres",
		"information_schema":     "belongs to Postgres",
	} {
		_, err := pgschema.Parse(name)
		require.ErrorContains(t, err, fault, "%.80q", name)
		require.Less(t, len(err.Error()), 200)
	}
}

func TestNamesAreQuotedInStatements(t *testing.T) {
	t.Parallel()
	for name, quoted := range map[string]string{"": `"streamkeel"`, "streamkeel": `"streamkeel"`, "user": `"user"`, "_1": `"_1"`, strings.Repeat("a", 63): `"` + strings.Repeat("a", 63) + `"`} {
		schema, err := pgschema.Parse(name)
		require.NoError(t, err)
		require.Equal(t, "SELECT "+quoted+".f() FROM "+quoted+".t", schema.SQL("SELECT {schema}.f() FROM {schema}.t"))
	}
	require.Equal(t, "streamkeel", pgschema.Name{}.String())
}
