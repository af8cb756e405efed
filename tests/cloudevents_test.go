package tests

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	sdk "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/cloudevents"
	"github.com/streamkeel/streamkeel/stream"
)

// samples are events of every kind of payload, with everything that an event can carry.
func samples() map[string]stream.Event {
	full := stream.NewEvent("order.placed", `ключ 1%"`, stream.ContentTypeJSON, []byte(`{"a":[1,"é"]}`))
	full.Source, full.Schema, full.CorrelationID, full.CausationID = "/shop/eu", "order.placed/v2", "c-1", "c-0"
	full.TraceParent, full.Expires = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	full.Sequence, full.Attributes = stream.Position{Batch: 3, Row: 9}, map[string]string{"tenant": "acme"}
	packed, text, least := full, full, stream.NewEvent("t", "", stream.ContentTypeJSON, []byte(`null`))
	packed.ContentType, packed.Data = stream.ContentTypeMsgpack, []byte{0x81, 0xa1, 'a', 0xff}
	text.ContentType, text.Data = "text/plain", []byte("héllo\n")
	least.Source = "s"
	return map[string]stream.Event{"json": full, "msgpack": packed, "text": text, "least": least}
}

// requireSame checks that the SDK sees the event that we see.
func requireSame(t *testing.T, want stream.Event, got sdk.Event) {
	t.Helper()
	require.NoError(t, got.Validate())
	require.Equal(t, "1.0", got.SpecVersion())
	require.Equal(t, want.ID, got.ID())
	require.Equal(t, want.Type, got.Type())
	require.Equal(t, want.Source, got.Source())
	require.Equal(t, want.Key, got.Subject())
	require.Equal(t, want.ContentType, got.DataContentType())
	require.Equal(t, schemaURI(want), got.DataSchema())
	require.True(t, want.Time.Equal(got.Time()), got.Time())
	if want.ContentType == stream.ContentTypeJSON {
		require.JSONEq(t, string(want.Data), string(got.Data()))
	} else {
		require.Equal(t, want.Data, got.Data())
	}
	extensions := map[string]any{}
	for name, value := range map[string]string{
		"correlationid": want.CorrelationID, "causationid": want.CausationID, "traceparent": want.TraceParent, "tenant": want.Attributes["tenant"],
	} {
		if value != "" {
			extensions[name] = value
		}
	}
	if !want.Sequence.IsZero() {
		extensions["sequence"], extensions["expirytime"] = want.Sequence.String(), want.Expires.Format(time.RFC3339)
	}
	require.Len(t, got.Extensions(), len(extensions))
	for name, value := range extensions {
		require.Equal(t, value, got.Extensions()[name], name)
	}
}

// schemaURI is the schema as CloudEvents has it: an absolute URI.
func schemaURI(e stream.Event) string {
	if e.Schema == "" {
		return ""
	}
	return "streamkeel:" + e.Schema
}

func TestOfficialSDKReadsOurCloudEvents(t *testing.T) {
	t.Parallel()
	for name, want := range samples() {
		doc, err := cloudevents.Marshal(want)
		require.NoError(t, err, name)
		var got sdk.Event
		require.NoError(t, got.UnmarshalJSON(doc), "%s: %s", name, doc)
		requireSame(t, want, got)

		header, body, err := cloudevents.WriteHTTP(want)
		require.NoError(t, err, name)
		read, err := binding.ToEvent(t.Context(), cehttp.NewMessage(header, readCloser{bytes.NewReader(body)}))
		require.NoError(t, err, name)
		subject, err := url.PathUnescape(read.Subject())
		require.NoError(t, err)
		read.SetSubject(subject) // the specification wants it escaped in a header, the SDK does not unescape
		requireSame(t, want, *read)
	}
}

func TestWeReadCloudEventsOfTheOfficialSDK(t *testing.T) {
	t.Parallel()
	for name, want := range samples() {
		e := sdk.NewEvent()
		e.SetID(want.ID)
		e.SetType(want.Type)
		e.SetSource(want.Source)
		e.SetTime(want.Time)
		if want.Key != "" {
			e.SetSubject(want.Key)
		}
		if want.Schema != "" {
			e.SetDataSchema(schemaURI(want))
		}
		for extension, value := range map[string]string{
			"correlationid": want.CorrelationID, "causationid": want.CausationID, "traceparent": want.TraceParent, "tenant": want.Attributes["tenant"],
		} {
			if value != "" {
				e.SetExtension(extension, value)
			}
		}
		if !want.Sequence.IsZero() {
			e.SetExtension("sequence", want.Sequence.String())
			e.SetExtension("expirytime", want.Expires)
		}
		require.NoError(t, e.SetData(want.ContentType, want.Data))

		doc, err := e.MarshalJSON()
		require.NoError(t, err, name)
		got, err := cloudevents.Unmarshal(doc)
		require.NoError(t, err, "%s: %s", name, doc)
		require.Equal(t, want, got, name)

		request := httptest.NewRequest(http.MethodPost, "/", nil)
		require.NoError(t, cehttp.WriteRequest(binding.WithForceBinary(t.Context()), binding.ToMessage(&e), request), name)
		got, err = cloudevents.ReadHTTP(request.Header, request.Body)
		require.NoError(t, err, "%s: %v", name, request.Header)
		require.Equal(t, want, got, name)
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }
