package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/pflag"

	"github.com/streamkeel/streamkeel/internal/pgschema"
	"github.com/streamkeel/streamkeel/migrations"
)

// PostgresFlags say how Postgres is reached.
type PostgresFlags struct {
	URL, PasswordFile string
	// Schema is that of Streamkeel's tables. Config finds its faults, and sets Tables.
	Schema string
	Tables migrations.Schema
}

// Register adds the flags.
func (p *PostgresFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&p.URL, "postgres-url", "", "`url` of the database that holds the outbox: postgres://user:password@host:5432/database; pgx's and libpq's options (sslmode, pool_max_conns, …) behind a ?")
	flags.StringVar(&p.PasswordFile, "postgres-password-file", "", "`file` with the password, where the URL has none; read again for each connection")
	flags.StringVar(&p.Schema, "schema", pgschema.Default, "`name` of the schema that holds Streamkeel's tables: [a-z_][a-z0-9_]{0,62}")
}

const applicationName = "application_name"

// Config checks the flags and returns what they say, or every fault. What is a secret is
// added to secrets.
func (p *PostgresFlags) Config(program string, secrets *Secrets) (*pgxpool.Config, []error) {
	config, faults := p.connection(program, secrets)
	schema, err := pgschema.Parse(p.Schema)
	if err != nil {
		faults = append(faults, fmt.Errorf("--schema: %w", err))
	}
	p.Tables = migrations.Schema(schema)
	return config, faults
}

func (p *PostgresFlags) connection(program string, secrets *Secrets) (*pgxpool.Config, []error) {
	if p.URL == "" {
		return nil, []error{errors.New("--postgres-url is missing: postgres://user@host:5432/database")}
	}
	if !strings.HasPrefix(p.URL, "postgres://") && !strings.HasPrefix(p.URL, "postgresql://") {
		return nil, []error{errors.New("--postgres-url does not start with postgres://")}
	}
	cfg, err := pgxpool.ParseConfig(p.URL)
	if err != nil {
		return nil, []error{postgresURLFault(err)}
	}
	secrets.Add(cfg.ConnConfig.Password)
	if cfg.ConnConfig.RuntimeParams[applicationName] == "" {
		cfg.ConnConfig.RuntimeParams[applicationName] = program
	}
	if p.PasswordFile == "" {
		return cfg, nil
	}
	var faults []error
	if _, _, given := strings.Cut(strings.SplitN(p.URL[strings.Index(p.URL, "://")+3:], "@", 2)[0], ":"); given && strings.Contains(p.URL, "@") {
		faults = append(faults, errors.New("--postgres-password-file and the URL give a password each"))
	}
	if _, err := readSecret(p.PasswordFile, secrets); err != nil {
		faults = append(faults, fmt.Errorf("--postgres-password-file: %w", err))
	}
	file := p.PasswordFile
	cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		var err error
		c.Password, err = readSecret(file, secrets)
		return err
	}
	return cfg, faults
}

// postgresURLFault says why pgx does not take a URL. Of pgx's error it repeats only what
// stands for itself: its text quotes the URL.
func postgresURLFault(err error) error {
	why := "it cannot be parsed; a character of the password must perhaps be escaped (/ ? # @ % as %2F %3F %23 %40 %25)"
	for _, part := range []string{"sslmode is invalid", "pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime", "pool_max_conn_idle_time", "pool_health_check_period", "invalid port"} {
		if strings.Contains(err.Error(), part) {
			why = "its part is wrong: " + part
		}
	}
	return fmt.Errorf("--postgres-url: %s", why)
}

// wherePostgres returns the address, for messages.
func wherePostgres(cfg *pgxpool.Config) string {
	c := cfg.ConnConfig
	if strings.HasPrefix(c.Host, "/") {
		return c.Host
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + "/" + c.Database
}
