package consumergroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/streamkeel/streamkeel/stream"
)

// Middleware wraps a handler in another. It may look at the event before and at the error
// after; what it returns decides how the delivery ends.
type Middleware func(Handler) Handler

// chain wraps h; the first middleware is the outermost.
func chain(h Handler, middleware []Middleware) Handler {
	for i := len(middleware) - 1; i >= 0; i-- {
		h = middleware[i](h)
	}
	return h
}

// Logging logs each handler run: at debug level where it succeeded, at info level
// otherwise, since failures that need a person are logged by the consumer itself.
// Default logger: slog.Default().
func Logging(logger *slog.Logger) Middleware {
	if logger == nil {
		logger = slog.Default()
	}
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, e stream.Event) error {
			began := time.Now()
			err := next.Handle(ctx, e)
			level := slog.LevelDebug
			if err != nil {
				level = slog.LevelInfo
			}
			if !logger.Enabled(ctx, level) {
				return err
			}
			m, _ := MetadataFrom(ctx)
			attrs := []slog.Attr{
				slog.String("type", e.Type), slog.String("event", e.ID), slog.String("key", e.Key),
				slog.String("topic", m.Topic), slog.String("group", m.Group), slog.Int("attempt", m.Attempt), slog.Duration("took", time.Since(began)),
			}
			if err != nil {
				attrs = append(attrs, slog.Any("err", err))
			}
			logger.LogAttrs(ctx, level, "handler ran", attrs...)
			return err
		})
	}
}

// PanicError is the error that a handler's panic is made into.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("consumergroup: handler panicked: %v", e.Value)
}

// Recovery makes an error of a panic, a *[PanicError]. The consumer does so anyway,
// around everything; this one lets the middleware outside of it see the error.
func Recovery() Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, e stream.Event) (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = &PanicError{p, debug.Stack()}
				}
			}()
			return next.Handle(ctx, e)
		})
	}
}

// Timeout ends the context of the handlers inside of it after d: of some event types, or of
// a part of the work; HandlerTimeout is for all.
func Timeout(d time.Duration) Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, e stream.Event) error {
			ctx, cancel := context.WithTimeoutCause(ctx, d, ErrHandlerTimeout)
			defer cancel()
			return next.Handle(ctx, e)
		})
	}
}

// Validation makes letters with reason "invalid" of events whose encoded payload v refuses,
// for handlers that decode it themselves; a definition's own Validator is asked by [Handle].
func Validation(v stream.Validator) Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, e stream.Event) error {
			err := v.Validate(e.ContentType, e.Data)
			switch {
			case err == nil:
				return next.Handle(ctx, e)
			case errors.Is(err, stream.ErrUndecodable):
				return err
			}
			return fmt.Errorf("consumergroup: %w payload of %s: %w", stream.ErrInvalid, e.Type, err)
		})
	}
}
