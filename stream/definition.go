package stream

import (
	"errors"
	"fmt"
)

// Definition ties the Go type T to an event type. Producer and consumer share it.
type Definition[T any] struct {
	eventType string
	config    DefinitionConfig[T]
	err       error
}

// DefinitionConfig says more about a definition; the zero value is the default.
type DefinitionConfig[T any] struct {
	// Codec encodes the payload. Default Msgpack. Decoding goes by the event's content
	// type, so that a consumer reads both while producers change over.
	Codec Codec
	// Validate refuses values, at the producer before anything is sent and at the
	// consumer before the handler runs. Default: every value is fine.
	Validate func(T) error
}

// Define returns the definition of an event type whose payload is a T. At most one
// config may follow. A wrong definition makes no panic: its error comes from Err, from
// publishing an event of it, and from a consumer's start.
func Define[T any](eventType string, config ...DefinitionConfig[T]) Definition[T] {
	d := Definition[T]{eventType: eventType}
	switch len(config) {
	case 0:
	case 1:
		d.config = config[0]
	default:
		d.err = fmt.Errorf("stream: %w definition of %q: %d configs", ErrInvalid, eventType, len(config))
	}
	if eventType == "" || len(eventType) > maxName {
		d.err = errors.Join(d.err, fmt.Errorf("stream: %w definition: event type %.210q must have 1 to %d bytes", ErrInvalid, eventType, maxName))
	}
	if d.config.Codec == nil {
		d.config.Codec = Msgpack
	}
	return d
}

// Type returns the event type.
func (d Definition[T]) Type() string { return d.eventType }

// Err returns what is wrong with the definition, or nil.
func (d Definition[T]) Err() error { return d.err }

// Event returns a new event about key that carries v. If v is invalid or cannot be
// encoded the event carries the error, and publishing it fails before anything is sent.
func (d Definition[T]) Event(key string, v T) Event {
	data, err := d.encode(v)
	e := NewEvent(d.eventType, key, d.config.Codec.ContentType(), data)
	if err != nil {
		e.err = errors.Join(e.err, err)
	}
	return e
}

func (d Definition[T]) encode(v T) ([]byte, error) {
	if d.err != nil {
		return nil, d.err
	}
	if err := d.validate(v); err != nil {
		return nil, err
	}
	return d.config.Codec.Encode(v)
}

// Decode returns the value that an event carries. ErrUndecodable says that the payload
// is not of its content type, ErrInvalid that the value was refused.
func (d Definition[T]) Decode(e Event) (T, error) {
	var v T
	if d.err != nil {
		return v, d.err
	}
	codec := d.config.Codec
	if e.ContentType != codec.ContentType() {
		if codec = codecFor(e.ContentType); codec == nil {
			return v, fmt.Errorf("stream: %w: content type %.100q of event %s has no codec", ErrUndecodable, e.ContentType, e.ID)
		}
	}
	if err := codec.Decode(e.Data, &v); err != nil {
		return v, err
	}
	return v, d.validate(v)
}

func (d Definition[T]) validate(v T) error {
	if d.config.Validate == nil {
		return nil
	}
	if err := d.config.Validate(v); err != nil {
		return fmt.Errorf("stream: %w %s: %w", ErrInvalid, d.eventType, err)
	}
	return nil
}
