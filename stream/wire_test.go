package stream_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

// respEntries is a reply to XREAD with entries of these fields.
func respEntries(id string, fields ...string) []byte {
	b := fmt.Appendf(nil, "*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$%d\r\n%s\r\n*%d\r\n", len(id), id, len(fields))
	for _, f := range fields {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(f), f)
	}
	return b
}

func decodeOne(t *testing.T, data []byte) stream.Entry {
	t.Helper()
	r := redisx.NewReply(data)
	var got []stream.Entry
	require.NoError(t, stream.DecodeEntries(&r, func(en stream.Entry, _ bool) error { got = append(got, en); return nil }))
	require.Len(t, got, 1)
	return got[0]
}

// What some other program may have written: it is malformed, or an event, and never a crash.
func TestForeignEntriesAreMalformedOrEvents(t *testing.T) {
	t.Parallel()
	event := []string{"id", "1", "type", "t"}
	for name, c := range map[string]struct {
		fields []string
		bad    bool
	}{
		"plain":                {event, false},
		"no useful field":      {[]string{"foo", "bar"}, true},
		"no field":             {nil, true},
		"no type":              {[]string{"id", "1"}, true},
		"empty id":             {[]string{"id", "", "type", "t"}, true},
		"two ids":              {[]string{"id", "1", "id", "2", "type", "t"}, true},
		"two payloads":         {append(slices.Clone(event), "data", "a", "data", "b"), true},
		"extra fields":         {append(slices.Clone(event), "foo", "bar", "foo", "baz"), false},
		"long id":              {[]string{"id", strings.Repeat("x", 201), "type", "t"}, true},
		"12 KB key":            {append(slices.Clone(event), "subject", strings.Repeat("k", 12<<10)), true},
		"not UTF-8":            {append(slices.Clone(event), "subject", "\xff"), true},
		"no time":              {append(slices.Clone(event), "time", "yesterday"), true},
		"year 10000":           {append(slices.Clone(event), "time", "10000-01-01T00:00:00Z"), true},
		"no position":          {append(slices.Clone(event), "sequence", "-1-2"), true},
		"fake traceparent":     {append(slices.Clone(event), "traceparent", "00-<script>"), false},
		"markup and controls":  {append(slices.Clone(event), "subject", "<script>\x1b[2J\r\n"), false},
		"attribute name":       {append(slices.Clone(event), "x-Tenant-ID", "a"), true},
		"33 attributes":        {append(slices.Clone(event), manyFields("x-a%d", 33)...), true},
		"32 attributes":        {append(slices.Clone(event), manyFields("x-a%d", 32)...), false},
		"1,000 headers":        {append(slices.Clone(event), manyFields("h%d", 998)...), false},
		"too many headers":     {append(slices.Clone(event), manyFields("h%d", 999)...), true},
		"bookkeeping":          {append(slices.Clone(event), "sk-attempts", "-1", "sk-deliveries", "9223372036854775808"), false},
		"64 MiB payload":       {append(slices.Clone(event), "data", strings.Repeat("x", 64<<20)), false},
		"payload of no format": {append(slices.Clone(event), "data", "\xdd\xff\xff\xff\xff"), false},
	} {
		en := decodeOne(t, respEntries("1-1", c.fields...))
		require.Equal(t, c.bad, en.Err != nil, "%s: %v", name, en.Err)
		if c.bad {
			require.ErrorIs(t, en.Err, stream.ErrMalformed, name)
		}
		var fields []string
		for k, v := range en.Fields() {
			fields = append(fields, k, v)
		}
		require.Equal(t, len(c.fields), len(fields), "%s: raw fields are kept", name)
		if _, err := orderPlaced.Decode(en.Event); len(en.Event.Data) > stream.MaxData {
			require.ErrorIs(t, err, stream.ErrUndecodable, name)
		}
	}
	for _, id := range []string{"18446744073709551615-18446744073709551615", "9999999999999-0"} {
		require.Equal(t, id, decodeOne(t, respEntries(id, event...)).ID.String())
	}
}

func manyFields(format string, n int) (fields []string) {
	for i := range n {
		fields = append(fields, fmt.Sprintf(format, i), "v")
	}
	return fields
}

func TestNewEntryIsWhatTheServerWouldSend(t *testing.T) {
	t.Parallel()
	fields := []string{"id", "1", "type", "t", "odd", "\xff\x00", "odd", "2"}
	en, err := stream.NewEntry("s", stream.ID{Ms: 1, Seq: 1}, fields)
	require.NoError(t, err)
	require.Equal(t, decodeOne(t, respEntries("1-1", fields...)), en)
	_, err = stream.NewEntry("s", stream.ID{}, []string{"odd"})
	require.ErrorIs(t, err, stream.ErrInvalid)
}

func FuzzDecodeEntries(f *testing.F) {
	event := []string{"id", "1", "type", "t"}
	f.Add(respEntries("1-1", event...))
	f.Add(respEntries("1-1"))
	f.Add(respEntries("18446744073709551615-18446744073709551615", append(event, "x-a", "b", "sk-attempts", "-1", "time", "10000-01-01T00:00:00Z")...))
	f.Add([]byte("%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*-1\r\n"))
	f.Add([]byte("*1\r\n*2\r\n$1\r\ns\r\n*4294967295\r\n"))
	f.Add([]byte("*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\nx-y\r\n*0\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := redisx.NewReply(data)
		_ = stream.DecodeEntries(&r, func(en stream.Entry, ok bool) error {
			for range en.Fields() {
			}
			if ok && en.Err == nil && (en.Event.ID == "" || en.Event.Type == "") {
				t.Fatalf("an event without id or type: %q", data)
			}
			return nil
		})
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; len(data) <= 1<<20 && used > 64<<20 {
			t.Fatalf("%d bytes for %d", used, len(data))
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1-1", "0", "18446744073709551615-18446744073709551615", "-1-2", "1-", "-", "99999999999999999999-0", "1-1-1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := stream.ParseID(s); err == nil {
			if again, err := stream.ParseID(id.String()); err != nil || again != id {
				t.Fatalf("%q: %v, %v", s, again, err)
			}
		}
		if p, err := stream.ParsePosition(s); err == nil {
			if again, err := stream.ParsePosition(p.String()); err != nil || again != p {
				t.Fatalf("%q: %v, %v", s, again, err)
			}
		}
	})
}
