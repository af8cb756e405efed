// Package quiet keeps an outage from flooding the log.
package quiet

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// every is how often a line of one kind is written at the most.
const every = 10 * time.Second

// Log writes each message at most every ten seconds for each kind, and then says how
// many of that kind it left out. It is safe for use by many goroutines.
type Log struct {
	to *slog.Logger

	mu    sync.Mutex
	kinds map[string]*kind
}

type kind struct {
	last    time.Time
	dropped int
}

// New returns a Log that writes to the logger; nil stands for slog.Default().
func New(to *slog.Logger) *Log {
	if to == nil {
		to = slog.Default()
	}
	return &Log{to: to, kinds: map[string]*kind{}}
}

// Error writes an error of a kind, unless one was written just before. The message is
// the kind, with where it happened if that is to be told apart.
func (l *Log) Error(ctx context.Context, message, where string, err error, args ...any) {
	l.write(ctx, slog.LevelError, message, where, append([]any{"err", err}, args...))
}

// Warn writes a warning of a kind, unless one was written just before.
func (l *Log) Warn(ctx context.Context, message, where string, args ...any) {
	l.write(ctx, slog.LevelWarn, message, where, args)
}

func (l *Log) write(ctx context.Context, level slog.Level, message, where string, args []any) {
	dropped, ok := l.allow(message + "\x00" + where)
	if !ok {
		return
	}
	if where != "" {
		args = append([]any{"at", where}, args...)
	}
	if dropped > 0 {
		args = append(args, "left_out", dropped)
	}
	l.to.Log(ctx, level, message, args...)
}

func (l *Log) allow(name string) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[name]
	if k == nil {
		if len(l.kinds) > 1000 { // names are few; were they many, memory would not pay for them
			clear(l.kinds)
		}
		k = &kind{}
		l.kinds[name] = k
	}
	if time.Since(k.last) < every {
		k.dropped++
		return 0, false
	}
	dropped, k.dropped, k.last = k.dropped, 0, time.Now()
	return dropped, true
}

// Info writes a line, always.
func (l *Log) Info(ctx context.Context, message string, args ...any) {
	l.to.InfoContext(ctx, message, args...)
}
