package stream_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/stream"
)

// big is a struct whose every zero costs memory.
type big struct {
	A, B, C, D, E, F, G, H string
	M                      map[string]any
	Next                   []big
}

// hostile inputs, by what they try.
func hostile() map[string][]byte {
	mib := func(head []byte, fill byte) []byte {
		return append(head, bytes.Repeat([]byte{fill}, 1<<20-len(head))...)
	}
	array := func(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0xdd}, n) }
	return map[string][]byte{
		"array of 4 billion":    {0xdd, 0xff, 0xff, 0xff, 0xff},
		"the same in a field":   append([]byte{0x81, 0xa1, 'A'}, 0xdd, 0xff, 0xff, 0xff, 0xff),
		"3 MB of nesting":       bytes.Repeat([]byte{0x91}, 3<<20),
		"1 MB of nesting":       bytes.Repeat([]byte{0x91}, 1<<20),
		"map head only":         {0xdf, 0xff, 0xff, 0xff, 0xff},
		"map cut off":           {0x82, 0xa1, 'a'},
		"truncated timestamp":   {0xc7, 0x0c, 0xff, 1, 2},
		"truncated fixext":      {0xd8, 0xff, 1},
		"bin of 4 billion":      {0xc6, 0xff, 0xff, 0xff, 0xff},
		"1 MiB of nil":          mib(array(1<<20-5), 0xc0),
		"1 MiB of empty maps":   mib(array(1<<20-5), 0x80),
		"unused code":           {0xc1},
		"empty":                 {},
		"two values":            {0xc0, 0xc0},
		"64 MiB":                make([]byte, 64<<20),
		"gzip bomb":             append([]byte{0x1f, 0x8b, 8, 0}, make([]byte, 100)...),
		"JSON nested":           []byte(strings.Repeat("[", 20_000)),
		"JSON of nulls":         []byte("[" + strings.Repeat("null,", 200_000) + "null]"),
		"JSON of empty objects": []byte("[" + strings.Repeat("{},", 300_000) + "{}]"),
		"JSON cut off":          []byte(`{"A":"x`),
		"JSON invalid UTF-8":    []byte("{\"A\":\"\xff\"}"),
		"JSON NaN":              []byte(`{"A":NaN}`),
		"JSON two values":       []byte(`{} {}`),
	}
}

func TestHostilePayloadsAreRefusedInBoundedMemory(t *testing.T) {
	var before, after runtime.MemStats
	for name, data := range hostile() {
		for _, codec := range []stream.Codec{stream.Msgpack, stream.JSON} {
			for _, into := range []func() any{
				func() any { return new(any) }, func() any { return new([]big) }, func() any { return new(big) }, func() any { return new([]int64) },
			} {
				runtime.ReadMemStats(&before)
				err := codec.Decode(data, into())
				runtime.ReadMemStats(&after)
				require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20), "%s by %s", name, codec.ContentType())
				if err != nil {
					require.ErrorIs(t, err, stream.ErrUndecodable, "%s by %s", name, codec.ContentType())
				}
			}
		}
	}
	for _, name := range []string{"array of 4 billion", "the same in a field", "3 MB of nesting", "1 MB of nesting", "map head only", "1 MiB of nil"} {
		require.ErrorIs(t, stream.Msgpack.Decode(hostile()[name], new(any)), stream.ErrUndecodable, name)
	}
	for _, name := range []string{"JSON nested", "JSON of nulls", "JSON of empty objects", "JSON two values", "JSON NaN"} {
		require.ErrorIs(t, stream.JSON.Decode(hostile()[name], new(any)), stream.ErrUndecodable, name)
	}
}

func TestBothCodecsReadWhatEitherWrote(t *testing.T) {
	want := order{ID: "o", Cents: -1, Lines: []line{{"a", 1}, {"b", 2}}}
	asJSON := stream.Define("order.placed", stream.DefinitionConfig[order]{Codec: stream.JSON})
	for _, producer := range []stream.Definition[order]{orderPlaced, asJSON} {
		for _, consumer := range []stream.Definition[order]{orderPlaced, asJSON} {
			got, err := consumer.Decode(producer.Event("k", want))
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
	_, err := orderPlaced.Decode(stream.NewEvent("order.placed", "k", "image/png", nil))
	require.ErrorIs(t, err, stream.ErrUndecodable)
}

func TestValidationStandsAtBothEnds(t *testing.T) {
	def := stream.Define("order.placed", stream.DefinitionConfig[order]{Validate: func(o order) error {
		if o.Cents < 0 {
			return errors.New("cents are negative")
		}
		return nil
	}})
	e := def.Event("k", order{Cents: -1})
	require.ErrorIs(t, e.Err(), stream.ErrInvalid)
	_, err := def.Decode(orderPlaced.Event("k", order{Cents: -1}))
	require.ErrorIs(t, err, stream.ErrInvalid)
	require.ErrorContains(t, err, "cents are negative")
}

func FuzzDecodeMsgpack(f *testing.F) {
	for _, data := range hostile() {
		if len(data) <= 1<<20 {
			f.Add(data)
		}
	}
	f.Add(orderPlaced.Event("k", order{ID: "x", Lines: []line{{"a", 1}}}).Data)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, codec := range []stream.Codec{stream.Msgpack, stream.JSON} {
			for _, into := range []any{new(any), new(order), new([]big)} {
				if err := codec.Decode(data, into); err != nil && !errors.Is(err, stream.ErrUndecodable) {
					t.Fatalf("%s: %v", codec.ContentType(), err)
				}
			}
		}
	})
}
