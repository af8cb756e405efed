package stream

import (
	"errors"
	"fmt"
	"reflect"
)

// Definition ties the Go type T to an event type. Producer and consumer share it.
type Definition[T any] struct {
	eventType string
	config    DefinitionConfig[T]
	upcasters map[int]Upcaster // by the version that they start from
	err       error
}

// DefinitionConfig says more about a definition; the zero value is the default.
type DefinitionConfig[T any] struct {
	// Codec encodes the payload. Default Msgpack. Decoding goes by the event's content
	// type, so that a consumer reads both while producers change over.
	Codec Codec
	// Version of the payload, 1 by default. From 2 on it stands in the event's schema, as
	// "<type>/v<version>", unless the event names another schema.
	Version int
	// Upcasters make this version of older ones, from the oldest that still comes. An event
	// of a version that none leads from, or of a newer one, is ErrUndecodable.
	Upcasters []Upcaster
	// Validate refuses values, at the producer before anything is sent and at the
	// consumer before the handler runs. Default: every value is fine.
	Validate func(T) error
	// Validator refuses encoded payloads of this version, at both ends too: package
	// jsonschema has one. Default: none.
	Validator Validator
}

// Validator refuses payloads.
type Validator interface {
	Validate(contentType string, data []byte) error
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
	if d.config.Version == 0 {
		d.config.Version = 1
	}
	var chainErr error
	d.upcasters, chainErr = checkUpcasters(d.config.Upcasters, d.config.Version, reflect.TypeFor[T]())
	if d.config.Version < 0 {
		chainErr = errors.Join(chainErr, fmt.Errorf("version %d is negative", d.config.Version))
	}
	if chainErr != nil {
		d.err = errors.Join(d.err, fmt.Errorf("stream: %w definition of %s: %w", ErrInvalid, eventType, chainErr))
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
	e.Schema = schemaOf(d.eventType, d.config.Version)
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
	data, err := d.config.Codec.Encode(v)
	if err != nil {
		return nil, err
	}
	return data, d.validateData(d.config.Codec.ContentType(), data)
}

// Decode returns the value that an event carries, brought up to this definition's
// version. ErrUndecodable says that the payload is not of its content type, or of a
// version that does not lead here; ErrInvalid that the value was refused.
func (d Definition[T]) Decode(e Event) (T, error) {
	var v T
	if d.err != nil {
		return v, d.err
	}
	codec := d.config.Codec
	if e.ContentType != codec.ContentType() {
		if codec = CodecFor(e.ContentType); codec == nil {
			return v, fmt.Errorf("stream: %w: content type %.100q of event %s has no codec", ErrUndecodable, e.ContentType, e.ID)
		}
	}
	if version := versionOf(&e); version != d.config.Version {
		return d.upcast(codec, &e, version)
	}
	if err := d.validateData(e.ContentType, e.Data); err != nil {
		return v, err
	}
	if err := codec.Decode(e.Data, &v); err != nil {
		return v, err
	}
	return v, d.validate(v)
}

// upcast decodes an event of an older version and runs the chain up to this one.
func (d Definition[T]) upcast(codec Codec, e *Event, version int) (T, error) {
	var zero T
	step, ok := d.upcasters[version]
	if !ok {
		return zero, fmt.Errorf("stream: %w: event %s is version %d of %s, and no upcaster leads from it to version %d",
			ErrUndecodable, e.ID, version, e.Type, d.config.Version)
	}
	value, err := step.decode(codec, e.Data)
	for ; err == nil && version < d.config.Version; version++ {
		if value, err = d.upcasters[version].apply(value); err != nil {
			err = fmt.Errorf("stream: %w: upcast event %s from version %d of %s: %w", ErrUndecodable, e.ID, version, e.Type, err)
		}
	}
	if err != nil {
		return zero, err
	}
	v, _ := value.(T)
	return v, d.validate(v)
}

func (d Definition[T]) validate(v T) error {
	if d.config.Validate == nil {
		return nil
	}
	return d.refused(d.config.Validate(v))
}

func (d Definition[T]) validateData(contentType string, data []byte) error {
	if d.config.Validator == nil {
		return nil
	}
	return d.refused(d.config.Validator.Validate(contentType, data))
}

func (d Definition[T]) refused(err error) error {
	if err == nil || errors.Is(err, ErrUndecodable) {
		return err
	}
	return fmt.Errorf("stream: %w %s: %w", ErrInvalid, d.eventType, err)
}
