// Package jsonschema validates payloads by JSON Schema, at the producer and at the consumer:
//
//	//go:embed order.json
//	var orderSchema []byte
//
//	var OrderPlaced = stream.Define("order.placed", stream.DefinitionConfig[Order]{
//		Validator: jsonschema.Must(jsonschema.Compile(orderSchema)),
//	})
//
// The schema describes the JSON form of the payload; msgpack payloads are validated by the
// value that they hold.
package jsonschema

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	validator "github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/streamkeel/streamkeel/stream"
)

// Schema is a compiled schema. It is a stream.Validator, safe for use by many goroutines.
type Schema struct{ schema *validator.Schema }

// Compile compiles a schema: a draft that it does not name is 2020-12. References must
// stay within the document; nothing is ever fetched.
func Compile(document []byte) (*Schema, error) {
	const name = "urn:payload"
	doc, err := validator.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		return nil, fmt.Errorf("jsonschema: schema is no JSON: %w", err)
	}
	c := validator.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource(name, doc); err != nil {
		return nil, fmt.Errorf("jsonschema: %w", err)
	}
	schema, err := c.Compile(name)
	if err != nil {
		return nil, fmt.Errorf("jsonschema: %w", err)
	}
	return &Schema{schema}, nil
}

// Must returns the schema of a call to Compile, or panics: for package variables.
func Must(s *Schema, err error) *Schema {
	if err != nil {
		panic(err)
	}
	return s
}

// noLoader fetches nothing: a schema must not read files or reach the network.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("reference to %s: only references within the document are followed", url)
}

// Validate returns why the payload breaks the schema, or nil. A payload that cannot be
// decoded is stream.ErrUndecodable.
func (s *Schema) Validate(contentType string, data []byte) error {
	value, err := decode(contentType, data)
	if err != nil {
		return err
	}
	err = s.schema.Validate(value)
	var broken *validator.ValidationError
	if errors.As(err, &broken) {
		return errors.New(strings.ReplaceAll(broken.Error(), "\n", " "))
	}
	return err
}

func decode(contentType string, data []byte) (any, error) {
	var value any
	if err := codec(contentType).Decode(data, &value); err != nil {
		return nil, err
	}
	if codec(contentType) == stream.JSON {
		// Numbers as they are written, for multipleOf and large integers.
		return validator.UnmarshalJSON(bytes.NewReader(data))
	}
	return plain(value), nil
}

func codec(contentType string) stream.Codec {
	if strings.HasPrefix(contentType, stream.ContentTypeJSON) || strings.HasSuffix(contentType, "+json") {
		return stream.JSON
	}
	return stream.Msgpack
}

// plain makes of a decoded msgpack value what encoding/json would make of it.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
		return v
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
		return v
	case []byte:
		return string(v)
	case fmt.Stringer: // a time, as its text
		return v.String()
	}
	return v
}
