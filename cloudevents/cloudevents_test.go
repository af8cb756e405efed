package cloudevents_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/cloudevents"
	"github.com/streamkeel/streamkeel/stream"
)

func full() stream.Event {
	e := stream.NewEvent("order.placed", "ключ 1%\"", stream.ContentTypeJSON, []byte(`{"a":1}`))
	e.Source, e.Schema, e.CorrelationID, e.CausationID = "shop", "order.placed/v2", "c-1", "c-0"
	e.TraceParent, e.Expires = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	e.Sequence, e.Attributes = stream.Position{Batch: 3, Row: 9}, map[string]string{"tenant": "acme"}
	return e
}

func TestEventsSurviveBothFormats(t *testing.T) {
	t.Parallel()
	packed := full()
	packed.ContentType, packed.Data = stream.ContentTypeMsgpack, []byte{0x81, 0xa1, 'a', 0x01}
	empty := full()
	empty.Data = nil
	text := full()
	text.ContentType, text.Data = "text/plain", []byte("héllo\n")
	for _, want := range []stream.Event{full(), packed, empty, text} {
		doc, err := cloudevents.Marshal(want)
		require.NoError(t, err)
		got, err := cloudevents.Unmarshal(doc)
		require.NoError(t, err)
		require.Equal(t, want, got)

		h, body, err := cloudevents.WriteHTTP(want)
		require.NoError(t, err)
		for _, values := range h {
			for _, c := range values[0] {
				require.True(t, c >= ' ' && c < 0x7f, "header %q", values[0])
			}
		}
		got, err = cloudevents.ReadHTTP(h, bytes.NewReader(body))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestForeignEventsAreReadAsTheSpecificationSays(t *testing.T) {
	t.Parallel()
	e, err := cloudevents.Unmarshal([]byte(`{"specversion":"1.0","id":"1","source":"/x","type":"t","count":7,"flag":true,"gone":null,"data":{"a":[1]}}`))
	require.NoError(t, err)
	require.Equal(t, stream.ContentTypeJSON, e.ContentType)
	require.JSONEq(t, `{"a":[1]}`, string(e.Data))
	require.Equal(t, map[string]string{"count": "7", "flag": "true"}, e.Attributes)
	e, err = cloudevents.Unmarshal([]byte(`{"specversion":"1.0","id":"1","source":"/x","type":"t","datacontenttype":"text/xml","data":"<a/>"}`))
	require.NoError(t, err)
	require.Equal(t, "<a/>", string(e.Data))
}

func TestSchemaIsAnAbsoluteURI(t *testing.T) {
	t.Parallel()
	for schema, uri := range map[string]string{
		"order.placed/v2": "streamkeel:order.placed/v2", "a b": "streamkeel:a%20b", "https://example.org/s": "https://example.org/s",
		"streamkeel:x": "streamkeel:streamkeel:x",
	} {
		e := full()
		e.Schema = schema
		h, body, err := cloudevents.WriteHTTP(e)
		require.NoError(t, err)
		require.Equal(t, strings.ReplaceAll(uri, "%", "%25"), h.Get("Ce-Dataschema"))
		got, err := cloudevents.ReadHTTP(h, bytes.NewReader(body))
		require.NoError(t, err)
		require.Equal(t, e, got)
	}
	_, err := cloudevents.Unmarshal([]byte(`{"specversion":"1.0","id":"1","source":"/x","type":"t","dataschema":"streamkeel:%zz"}`))
	require.ErrorIs(t, err, cloudevents.ErrInvalid)
}

func TestWhatIsNoCloudEventIsRefused(t *testing.T) {
	t.Parallel()
	for name, doc := range map[string]string{
		"no JSON":     `{`,
		"no version":  `{"id":"1","source":"/x","type":"t"}`,
		"old version": `{"specversion":"0.3","id":"1","source":"/x","type":"t"}`,
		"no id":       `{"specversion":"1.0","source":"/x","type":"t"}`,
		"no source":   `{"specversion":"1.0","id":"1","type":"t"}`,
		"structure":   `{"specversion":"1.0","id":"1","source":"/x","type":"t","ext":{}}`,
		"bad name":    `{"specversion":"1.0","id":"1","source":"/x","type":"t","Ext-1":"x"}`,
		"bad time":    `{"specversion":"1.0","id":"1","source":"/x","type":"t","time":"yesterday"}`,
		"both data":   `{"specversion":"1.0","id":"1","source":"/x","type":"t","data":1,"data_base64":"AA=="}`,
		"bad base64":  `{"specversion":"1.0","id":"1","source":"/x","type":"t","data_base64":"?"}`,
		"no text":     `{"specversion":"1.0","id":"1","source":"/x","type":"t","datacontenttype":"text/xml","data":{}}`,
	} {
		_, err := cloudevents.Unmarshal([]byte(doc))
		require.ErrorIs(t, err, cloudevents.ErrInvalid, name)
	}
	for name, change := range map[string]func(*stream.Event){
		"no source":     func(e *stream.Event) { e.Source = "" },
		"no id":         func(e *stream.Event) { e.ID = "" },
		"taken name":    func(e *stream.Event) { e.Attributes = map[string]string{"subject": "x"} },
		"reserved name": func(e *stream.Event) { e.Attributes = map[string]string{"data": "x"} },
		"lying payload": func(e *stream.Event) { e.Data = []byte("{") },
	} {
		e := full()
		change(&e)
		_, err := cloudevents.Marshal(e)
		require.ErrorIs(t, err, cloudevents.ErrInvalid, name)
	}
	h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1", "2"}, "Ce-Source": {"/x"}, "Ce-Type": {"t"}}
	_, err := cloudevents.ReadHTTP(h, strings.NewReader(""))
	require.ErrorIs(t, err, cloudevents.ErrInvalid)
	h["Ce-Id"] = []string{"%zz"}
	e, err := cloudevents.ReadHTTP(h, strings.NewReader(""))
	require.NoError(t, err, "others do not escape")
	require.Equal(t, "%zz", e.ID)
	_, err = cloudevents.ReadHTTP(h, strings.NewReader(strings.Repeat("x", stream.MaxData+1)))
	require.ErrorIs(t, err, cloudevents.ErrInvalid)
}

func FuzzUnmarshal(f *testing.F) {
	doc, _ := cloudevents.Marshal(full())
	f.Add(doc)
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/x","type":"t","data":{"a":[1]}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		e, err := cloudevents.Unmarshal(doc)
		if err != nil {
			return
		}
		again, err := cloudevents.Marshal(e)
		if err != nil {
			return // a JSON content type over text that is none
		}
		if _, err := cloudevents.Unmarshal(again); err != nil {
			t.Fatalf("%s became %s: %v", doc, again, err)
		}
	})
}
