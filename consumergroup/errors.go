package consumergroup

import (
	"errors"
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	// ErrInvalid says that a config or a handler breaks a rule.
	ErrInvalid = errors.New("invalid")
	// ErrUnhandled is what a Mux returns for an event type that it does not name.
	ErrUnhandled = errors.New("no handler for the event type")
	// ErrHandlerTimeout is the cause of a handler's context that ended after HandlerTimeout.
	ErrHandlerTimeout = errors.New("handler timeout")
	// ErrLost is the cause of a handler's context whose entry went to another consumer:
	// what the handler does from here is done twice.
	ErrLost = errors.New("entry lost to another consumer")
	// ErrStopped is the cause of a handler's context that ended because the consumer
	// stopped and ShutdownTimeout passed; the entry is released.
	ErrStopped = errors.New("consumer stopped")
)

// Class is what an error means for the delivery.
type Class int

// The classes of errors.
const (
	// Transient errors are retried by policy, and count as attempts.
	Transient Class = iota
	// PermanentError goes to the dead letters at once: another attempt would give the same.
	PermanentError
	// UnavailableError says that something that the handler needs is away: the entry is
	// given back, no attempt is counted, and the consumer pauses.
	UnavailableError
)

type permanentError struct {
	err    error
	reason dlq.Reason
}

func (e permanentError) Error() string { return e.err.Error() }
func (e permanentError) Unwrap() error { return e.err }

// Permanent marks err so that the event goes to the dead letters without another attempt.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err, dlq.ReasonPermanent}
}

// DeadLetter is what a handler returns to make the event a letter with reason "manual" and
// this text. It counts as an attempt.
func DeadLetter(text string) error { return permanentError{errors.New(text), dlq.ReasonManual} }

type releaseError struct{ delay time.Duration }

func (e releaseError) Error() string { return fmt.Sprintf("given back for %s", e.delay) }

// Release is what a handler returns to give the event back to the group, for it or another
// consumer to handle in d; neither an attempt nor a delivery is counted, so that nothing
// ends an event which is released for ever.
func Release(d time.Duration) error { return releaseError{max(d, 0)} }

type unavailableError struct{ err error }

func (e unavailableError) Error() string { return e.err.Error() }
func (e unavailableError) Unwrap() error { return e.err }

// Unavailable marks err as the outage of something the handler needs, such as its
// database: no attempt is counted, and the consumer pauses before it reads on.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	return unavailableError{err}
}

type retryAfterError struct {
	err   error
	delay time.Duration
}

func (e retryAfterError) Error() string { return fmt.Sprintf("%s (retry after %s)", e.err, e.delay) }
func (e retryAfterError) Unwrap() error { return e.err }

// Retry is what a handler returns to be called again for the event in d. It is RetryAfter
// where there is no error to tell.
func Retry(d time.Duration) error { return RetryAfter(errors.New("retry wanted"), d) }

// RetryAfter marks err so that the next attempt comes after d, instead of by the policy's
// backoff. It counts as an attempt like any other.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return retryAfterError{err, max(d, 0)}
}

// Classify returns the class of a handler's error: what Permanent and Unavailable
// marked, undecodable and invalid payloads as PermanentError, errors of an unreachable
// Redis as UnavailableError, and everything else as Transient.
func Classify(err error) Class {
	var permanent permanentError
	var unavailable unavailableError
	switch {
	case errors.As(err, &permanent):
		return PermanentError
	case errors.As(err, &unavailable):
		return UnavailableError
	case errors.Is(err, stream.ErrUndecodable), errors.Is(err, stream.ErrInvalid), errors.Is(err, stream.ErrMalformed):
		return PermanentError
	case redisx.IsServer(err) && redisx.IsUnavailable(err):
		return UnavailableError
	}
	return Transient
}
