package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/migrations"
)

// migrateDocument is what `migrate status --json` and `migrate up --json` print.
type migrateDocument struct {
	Migrations []migrationRow `json:"migrations"`
	// Missing counts those that this version brings and the database lacks.
	Missing int `json:"missing"`
	// Applied names those that `migrate up` applied.
	Applied []string `json:"applied"`
}

type migrationRow struct {
	Version   int64      `json:"version"`
	Name      string     `json:"name"`  // "" for one of a newer version
	State     string     `json:"state"` // applied, missing, or newer
	AppliedAt *time.Time `json:"applied_at"`
}

func newMigrateCommand(a *app) *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "List the migrations, and whether the database has them", Args: cobra.NoArgs,
		RunE: a.withPostgres(func(ctx context.Context, schema migrations.Schema, db *sql.DB) error {
			document, err := migrationStatus(ctx, schema, db)
			if err != nil {
				return err
			}
			return a.print(document, document.table)
		}),
	}
	up := &cobra.Command{
		Use: "up", Short: "Apply the migrations that the database lacks", Args: cobra.NoArgs,
		Long: "Apply the migrations that the database lacks, each in a transaction of its own. Any number of processes may do it at\n" +
			"once: one works, the others wait. The connection must not go through a pooler in transaction mode.",
		RunE: a.withPostgres(func(ctx context.Context, schema migrations.Schema, db *sql.DB) error {
			before, err := migrationStatus(ctx, schema, db)
			if err != nil {
				return err
			}
			if err := schema.Up(ctx, db); err != nil {
				return err
			}
			document, err := migrationStatus(ctx, schema, db)
			if err != nil {
				return err
			}
			missing := map[int64]bool{}
			for _, m := range before.Migrations {
				missing[m.Version] = m.State == "missing"
			}
			for _, m := range document.Migrations {
				if missing[m.Version] {
					document.Applied = append(document.Applied, m.Name)
				}
			}
			return a.print(document, func(w io.Writer) {
				for _, name := range document.Applied {
					fmt.Fprintf(w, "applied %s\n", name)
				}
				if len(document.Applied) == 0 {
					fmt.Fprintln(w, "nothing to apply")
				}
			})
		}),
	}
	return parent("migrate", "Make and change Streamkeel's tables in Postgres", up, status)
}

func migrationStatus(ctx context.Context, schema migrations.Schema, db *sql.DB) (migrateDocument, error) {
	statuses, err := schema.Status(ctx, db)
	if err != nil {
		return migrateDocument{}, err
	}
	document := migrateDocument{Migrations: []migrationRow{}, Applied: []string{}}
	for _, s := range statuses {
		row := migrationRow{Version: s.Version, Name: s.Name, State: "applied", AppliedAt: instant(s.AppliedAt)}
		switch {
		case s.AppliedAt.IsZero():
			row.State = "missing"
			document.Missing++
		case s.Name == "":
			row.State = "newer"
		}
		document.Migrations = append(document.Migrations, row)
	}
	return document, nil
}

func (d migrateDocument) table(w io.Writer) {
	var rows [][]string
	for _, m := range d.Migrations {
		at := ""
		if m.AppliedAt != nil {
			at = moment(*m.AppliedAt)
		}
		rows = append(rows, []string{fmt.Sprintf("%05d", m.Version), m.State, at, m.Name})
	}
	table(w, []string{"VERSION", "STATE", "APPLIED", "NAME"}, rows)
}

// withPostgres makes a command's function one that gets a database that answers.
func (a *app) withPostgres(fn func(ctx context.Context, schema migrations.Schema, db *sql.DB) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cfg, faults := a.postgres.Config(program, a.secrets)
		if len(faults) > 0 {
			return command.Unfit(errors.Join(faults...))
		}
		var options []stdlib.OptionOpenDB
		if cfg.BeforeConnect != nil {
			options = append(options, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
		}
		db := stdlib.OpenDB(*cfg.ConnConfig, options...)
		defer func() { _ = db.Close() }() // nothing is in hand
		if err := command.CheckDatabase(cmd.Context(), cfg, db, a.start.Timeout); err != nil {
			return err
		}
		err := fn(cmd.Context(), a.postgres.Tables, db)
		if command.IsDenied(err) {
			return command.PostgresFault(cfg, err)
		}
		return err
	}
}
