package jsonschema_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/examples/webhooks"
	"github.com/streamkeel/streamkeel/jsonschema"
	"github.com/streamkeel/streamkeel/stream"
)

// Schemas for three of GitHub's webhooks.
var schemas = map[string]string{
	"push": `{
		"type": "object", "required": ["ref", "before", "after", "commits", "repository", "pusher"],
		"properties": {
			"ref": {"type": "string", "pattern": "^refs/"},
			"before": {"$ref": "#/$defs/sha"}, "after": {"$ref": "#/$defs/sha"},
			"commits": {"type": "array", "items": {"type": "object", "required": ["id", "message"], "properties": {"id": {"$ref": "#/$defs/sha"}}}},
			"repository": {"type": "object", "required": ["id", "full_name"], "properties": {"id": {"type": "integer"}}}
		},
		"$defs": {"sha": {"type": "string", "pattern": "^[0-9a-f]{40}$"}}}`,
	"issues": `{
		"type": "object", "required": ["action", "issue", "repository", "sender"],
		"properties": {
			"action": {"enum": ["opened", "edited", "deleted", "pinned", "unpinned", "closed", "reopened", "assigned", "unassigned",
				"labeled", "unlabeled", "locked", "unlocked", "transferred", "milestoned", "demilestoned"]},
			"issue": {"type": "object", "required": ["number", "title"], "properties": {
				"number": {"type": "integer", "minimum": 1}, "state": {"enum": ["open", "closed"]}}}}}`,
	"star": `{
		"type": "object", "required": ["action", "starred_at", "repository"],
		"properties": {"action": {"enum": ["created", "deleted"]}, "starred_at": {"type": ["string", "null"]}}}`,
}

func TestRealWebhooksKeepTheirSchemas(t *testing.T) {
	t.Parallel()
	all, err := webhooks.Load()
	require.NoError(t, err)
	seen := map[string]int{}
	for _, d := range all {
		source, ok := schemas[d.Event]
		if !ok {
			continue
		}
		seen[d.Event]++
		schema, err := jsonschema.Compile([]byte(source))
		require.NoError(t, err)
		asJSON := stream.Define("github."+d.Event, stream.DefinitionConfig[json.RawMessage]{Codec: stream.JSON, Validator: schema})
		asMsgpack := stream.Define("github."+d.Event, stream.DefinitionConfig[map[string]any]{Validator: schema})
		e := asJSON.Event("k", d.Payload)
		require.NoError(t, e.Err())
		got, err := asJSON.Decode(e)
		require.NoError(t, err)
		require.JSONEq(t, string(d.Payload), string(got))

		var value map[string]any
		require.NoError(t, json.Unmarshal(d.Payload, &value))
		packed := asMsgpack.Event("k", value)
		require.NoError(t, packed.Err())
		_, err = asMsgpack.Decode(packed)
		require.NoError(t, err)

		value["action"], value["ref"] = 7, 7
		broken := asMsgpack.Event("k", value)
		require.ErrorIs(t, broken.Err(), stream.ErrInvalid)
		data, err := json.Marshal(value)
		require.NoError(t, err)
		_, err = asJSON.Decode(stream.NewEvent("github."+d.Event, "k", stream.ContentTypeJSON, data))
		require.ErrorIs(t, err, stream.ErrInvalid)
	}
	for event := range schemas {
		require.Positive(t, seen[event], "no %s webhook", event)
	}
}

func TestBadSchemasAndPayloadsAreErrors(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]string{
		"no JSON": `{`, "no schema": `{"type": 7}`, "remote": `{"$ref": "https://example.com/x.json"}`, "file": `{"$ref": "file:///etc/passwd"}`,
	} {
		_, err := jsonschema.Compile([]byte(source))
		require.ErrorContains(t, err, "jsonschema:", name)
	}
	schema := jsonschema.Must(jsonschema.Compile([]byte(`{"type": "integer", "multipleOf": 3}`)))
	require.NoError(t, schema.Validate(stream.ContentTypeJSON, []byte(`9007199254740993`)))
	require.NoError(t, schema.Validate(stream.ContentTypeMsgpack, []byte{0x06}))
	require.Error(t, schema.Validate(stream.ContentTypeMsgpack, []byte{0x07}))
	require.ErrorIs(t, schema.Validate(stream.ContentTypeMsgpack, []byte{0xdd, 0xff, 0xff, 0xff, 0xff}), stream.ErrUndecodable)
	require.Panics(t, func() { jsonschema.Must(jsonschema.Compile(nil)) })
}
