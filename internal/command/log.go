package command

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/streamkeel/streamkeel/internal/quiet"
)

// LogFlags say how a daemon logs.
type LogFlags struct {
	Format string
	Level  slog.Level
}

// Register adds the flags.
func (l *LogFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&l.Format, "log-format", "json", "`format` of the log on standard error: json or text")
	flags.TextVar(&l.Level, "log-level", slog.LevelInfo, "least `level` that is logged: debug, info, warn or error")
	flags.Lookup("log-level").DefValue = "info"
}

// Validate returns the faults.
func (l *LogFlags) Validate() []error {
	if !slices.Contains([]string{"json", "text"}, l.Format) {
		return []error{fmt.Errorf("--log-format %q is neither json nor text", l.Format)}
	}
	return nil
}

// New returns the logger. Secrets are taken out of every line.
func (l *LogFlags) New(w io.Writer, secrets *Secrets) *slog.Logger {
	options := &slog.HandlerOptions{Level: l.Level}
	w = secrets.Writer(w)
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// redisLog is where go-redis writes to, which has one logger for the whole process. Until
// there is a logger it is dropped: what kept the program from starting is told by one line.
type redisLog struct{ to atomic.Pointer[quiet.Log] }

var theRedisLog redisLog

func routeRedisLog() { redis.SetLogger(&theRedisLog) }

// SendRedisLog sends the messages of go-redis to the logger, one of them every ten seconds.
func SendRedisLog(logger *slog.Logger) { theRedisLog.to.Store(quiet.New(logger)) }

// Printf implements go-redis's interface of loggers.
func (l *redisLog) Printf(ctx context.Context, format string, args ...any) {
	if to := l.to.Load(); to != nil {
		to.Warn(ctx, "message of the Redis client", "", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}
