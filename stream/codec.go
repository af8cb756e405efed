package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
)

// Codec turns values into payloads and back.
type Codec interface {
	// ContentType names the format, as it stands in the event.
	ContentType() string
	// Encode returns the payload of a value.
	Encode(v any) ([]byte, error)
	// Decode reads a payload into the value that v points to. It must withstand any
	// input: its error is ErrUndecodable, never a panic or unbounded memory.
	Decode(data []byte, v any) error
}

// The content types of the codecs.
const (
	ContentTypeMsgpack = "application/vnd.msgpack"
	ContentTypeJSON    = "application/json"
)

var (
	// Msgpack is the default codec. Struct fields take their names from `json` tags, so
	// that a type reads the same in both codecs.
	Msgpack Codec = msgpackCodec{}
	// JSON is encoding/json under the same limits.
	JSON Codec = jsonCodec{}
)

// CodecFor returns the codec that reads a content type, or nil.
func CodecFor(contentType string) Codec {
	base, _, _ := strings.Cut(contentType, ";")
	switch base = strings.TrimSpace(base); {
	case base == "", base == ContentTypeMsgpack, base == "application/msgpack", base == "application/x-msgpack":
		return Msgpack
	case base == ContentTypeJSON, strings.HasSuffix(base, "+json"):
		return JSON
	}
	return nil
}

type msgpackCodec struct{}

func (msgpackCodec) ContentType() string { return ContentTypeMsgpack }

func (msgpackCodec) Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := msgpack.GetEncoder()
	defer msgpack.PutEncoder(enc)
	enc.Reset(&b)
	enc.SetCustomStructTag("json")
	enc.UseCompactInts(true)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("stream: encode msgpack: %w", err)
	}
	return b.Bytes(), nil
}

func (msgpackCodec) Decode(data []byte, v any) error {
	if err := scanMsgpack(data); err != nil {
		return err
	}
	dec := msgpack.GetDecoder()
	defer msgpack.PutDecoder(dec)
	dec.Reset(bytes.NewReader(data))
	dec.SetCustomStructTag("json")
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("stream: %w msgpack: %w", ErrUndecodable, err)
	}
	return nil
}

type jsonCodec struct{}

func (jsonCodec) ContentType() string { return ContentTypeJSON }

func (jsonCodec) Encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("stream: encode JSON: %w", err)
	}
	return data, nil
}

func (jsonCodec) Decode(data []byte, v any) error {
	if err := scanJSON(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("stream: %w JSON: %w", ErrUndecodable, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("stream: %w JSON: more than one value", ErrUndecodable)
	}
	return nil
}
