package stream_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/stream"
)

type (
	priceV1 struct {
		Euros float64 `json:"euros"`
	}
	priceV2 struct {
		Cents int64 `json:"cents"`
	}
	priceV3 struct {
		Cents    int64  `json:"cents"`
		Currency string `json:"currency"`
	}
)

var (
	toV2 = stream.Upcast(1, func(p priceV1) (priceV2, error) {
		if p.Euros < 0 {
			return priceV2{}, errors.New("negative")
		}
		return priceV2{int64(p.Euros * 100)}, nil
	})
	toV3 = stream.Upcast(2, func(p priceV2) (priceV3, error) { return priceV3{p.Cents, "EUR"}, nil })
)

func TestOldEventsAreBroughtUpToTheVersionOfTheConsumer(t *testing.T) {
	t.Parallel()
	v1 := stream.Define[priceV1]("price.set")
	v2 := stream.Define("price.set", stream.DefinitionConfig[priceV2]{Version: 2, Upcasters: []stream.Upcaster{toV2}, Codec: stream.JSON})
	v3 := stream.Define("price.set", stream.DefinitionConfig[priceV3]{Version: 3, Upcasters: []stream.Upcaster{toV3, toV2}})
	require.NoError(t, v3.Err())
	for _, e := range []stream.Event{v1.Event("k", priceV1{12.5}), v2.Event("k", priceV2{1250}), v3.Event("k", priceV3{1250, "EUR"})} {
		got, err := v3.Decode(e)
		require.NoError(t, err)
		require.Equal(t, priceV3{1250, "EUR"}, got)
	}
	require.Empty(t, v1.Event("k", priceV1{}).Schema)
	require.Equal(t, "price.set/v3", v3.Event("k", priceV3{}).Schema)

	_, err := v2.Decode(v3.Event("k", priceV3{}))
	require.ErrorIs(t, err, stream.ErrUndecodable, "a version from the future")
	_, err = v3.Decode(v1.Event("k", priceV1{-1}))
	require.ErrorIs(t, err, stream.ErrUndecodable, "an upcaster that fails")
	only3 := stream.Define("price.set", stream.DefinitionConfig[priceV3]{Version: 3, Upcasters: []stream.Upcaster{toV3}})
	require.NoError(t, only3.Err(), "a chain need not start at version 1")
	_, err = only3.Decode(v1.Event("k", priceV1{}))
	require.ErrorIs(t, err, stream.ErrUndecodable)

	foreign := v1.Event("k", priceV1{1})
	foreign.Schema = "https://example.com/price.json"
	_, err = v1.Decode(foreign)
	require.NoError(t, err, "a schema of another program says nothing of the version")
}

func TestFaultsInAChainAreFoundAtStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version   int
		upcasters []stream.Upcaster
		says      string
	}{
		"hole":      {3, []stream.Upcaster{toV2}, "no upcaster from version 2"},
		"duplicate": {3, []stream.Upcaster{toV2, toV2, toV3}, "two upcasters from version 1"},
		"beyond":    {2, []stream.Upcaster{toV3}, "leads beyond version 2"},
		"zero":      {3, []stream.Upcaster{stream.Upcast(0, func(p priceV1) (priceV1, error) { return p, nil }), toV3}, "versions start at 1"},
		"misfit":    {2, []stream.Upcaster{toV2}, "makes a stream_test.priceV2, version 2 is a stream_test.priceV3"},
		"nil":       {2, []stream.Upcaster{stream.Upcast[priceV1, priceV3](1, nil)}, "is nil"},
		"negative":  {-1, nil, "version -1"},
	} {
		def := stream.Define("price.set", stream.DefinitionConfig[priceV3]{Version: c.version, Upcasters: c.upcasters})
		require.ErrorIs(t, def.Err(), stream.ErrInvalid, name)
		require.ErrorContains(t, def.Err(), c.says, name)
		_, err := def.Decode(stream.Event{})
		require.ErrorIs(t, err, stream.ErrInvalid, name)
	}
}
