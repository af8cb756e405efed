package stream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/stream"
)

// clicked makes an event of an entry with a user and a page, as some other program writes it.
func clicked(fields map[string]string) (stream.Event, error) {
	if fields["page"] == "" {
		return stream.Event{}, errors.New("no page")
	}
	return stream.NewEvent("page.clicked", fields["user"], "text/plain", []byte(fields["page"])), nil
}

func TestAdoptedEntryIsTheSameEventWhereverItIsRead(t *testing.T) {
	t.Parallel()
	topic := stream.Topic{Name: "clicks", Stream: "legacy:clicks", Adopt: stream.Adopt(clicked)}
	id := stream.ID{Ms: 1_700_000_000_000, Seq: 7}
	first, err := stream.NewEntry(topic.Stream, id, []string{"user", "ann", "page", "/", "page", "/home", "sequence", "1-1", "time", "1700000000"})
	require.NoError(t, err)
	again, err := stream.NewEntry("{legacy:clicks}:retry:billing", stream.ID{Ms: 1_800_000_000_000}, []string{"page", "/home", "user", "ann", "sk-attempts", "1"})
	require.NoError(t, err)
	topic.AdoptEntry(&first, "")
	topic.AdoptEntry(&again, "legacy:clicks/1700000000000-7")
	want := stream.Event{
		ID: "legacy:clicks/1700000000000-7", Type: "page.clicked", Source: "clicks", Key: "ann", Time: time.UnixMilli(1_700_000_000_000).UTC(),
		ContentType: "text/plain", Data: []byte("/home"),
	}
	for _, en := range []stream.Entry{first, again} {
		require.NoError(t, en.Err)
		require.Equal(t, want, en.Event)
	}

	said := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	topic.Adopt = stream.Adopt(func(map[string]string) (stream.Event, error) {
		return stream.Event{ID: "its own", Type: "t", Source: "shop", Time: said}, nil
	})
	topic.AdoptEntry(&first, "")
	require.Equal(t, want, first.Event, "what is an event already is not adopted")
	other, err := stream.NewEntry("s", stream.ID{Ms: ^uint64(0), Seq: ^uint64(0)}, nil)
	require.NoError(t, err)
	topic.AdoptEntry(&other, "")
	require.Equal(t, stream.Event{ID: "s/18446744073709551615-18446744073709551615", Type: "t", Source: "shop", Time: said}, other.Event)
}

func TestEntryThatCannotBeAdoptedStaysMalformed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		adopt  func(map[string]string) (stream.Event, error)
		fields []string
		says   string
	}{
		"error":                    {clicked, []string{"user", "ann"}, "no page"},
		"panic":                    {func(map[string]string) (stream.Event, error) { panic("oh") }, nil, "panicked: oh"},
		"no type":                  {func(map[string]string) (stream.Event, error) { return stream.Event{}, nil }, nil, "type is empty"},
		"invalid":                  {clicked, []string{"user", "\xff", "page", "/"}, "key is not UTF-8"},
		"no value":                 {func(map[string]string) (stream.Event, error) { return orderRefused(), nil }, nil, "refused"},
		"too large":                {clicked, []string{"page", strings.Repeat("x", stream.MaxData+1)}, "data has"},
		"1,001 fields":             {func(map[string]string) (stream.Event, error) { panic("it is called") }, manyFields("h%d", 1001), "1001 fields"},
		"only Streamkeel's fields": {clicked, []string{"sk-page", "/"}, "no page"},
	} {
		en, err := stream.NewEntry("s", stream.ID{Ms: 1}, c.fields)
		require.NoError(t, err)
		topic := stream.Topic{Name: "clicks", Adopt: stream.Adopt(c.adopt)}
		topic.AdoptEntry(&en, "")
		require.ErrorIs(t, en.Err, stream.ErrMalformed, name)
		require.ErrorContains(t, en.Err, c.says, name)
	}
}

// orderRefused is an event whose value failed validation when it was made.
func orderRefused() stream.Event {
	return stream.Define("order.refused", stream.DefinitionConfig[int]{Validate: func(int) error { return errors.New("refused") }}).Event("k", 1)
}

func TestTopicsThatAdoptAreValidated(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 159)
	require.NoError(t, stream.Topic{Name: "clicks", Stream: long}.Validate())
	require.NoError(t, stream.Topic{Name: "clicks", Stream: long[1:], Adopt: stream.Adopt(clicked)}.Validate())
	require.ErrorContains(t, stream.Topic{Name: "clicks", Stream: long, Adopt: stream.Adopt(clicked)}.Validate(), "159 bytes, 158 are allowed")
	require.ErrorContains(t, stream.Topic{Name: "clicks", Adopt: stream.Adopt(nil)}.Validate(), "no function")
}

func TestReadersAdoptAndTheirMarksDoNotDependOnIt(t *testing.T) {
	t.Parallel()
	l := newLog(t, 2)
	for i := range 4 {
		fields := []any{"xadd", l.topic.StreamKey(i % 2), fmt.Sprint(i+1, "-0"), "id", "a", "page", fmt.Sprint(i)} // an id, and yet no event
		require.NoError(t, l.rdb.Do(t.Context(), fields...).Err())
	}
	adopting := &log{t: t, rdb: l.rdb, topic: l.topic}
	adopting.topic.Adopt = stream.Adopt(clicked)
	key := func(p int) string { return l.topic.StreamKey(p) }
	ids := []string{key(0) + "/1-0", key(1) + "/2-0", key(0) + "/3-0", key(1) + "/4-0"}
	for _, byTime := range []bool{false, true} {
		var got []string
		for en, err := range adopting.reader(stream.ReaderConfig{Count: 1, ByTime: byTime}).Entries(t.Context()) {
			require.NoError(t, err)
			require.NoError(t, en.Err)
			got = append(got, en.Event.ID)
		}
		require.ElementsMatch(t, ids, got)
	}

	for name, logs := range map[string][2]*log{"declared meanwhile": {l, adopting}, "dropped meanwhile": {adopting, l}} {
		from := map[string]stream.Mark{}
		for _, l := range logs {
			r := l.reader(stream.ReaderConfig{Count: 1, From: from})
			got, err := r.Read(t.Context())
			require.NoError(t, err, name)
			require.Len(t, got, 2, name)
			require.Equal(t, l == adopting, got[0].Err == nil, name)
			from[key(0)], from[key(1)] = r.Mark(key(0)), r.Mark(key(1))
		}
	}
}

func ExampleAdopt() {
	ctx := context.Background()
	rdb, _ := exampleTopic(ctx, "adopt")
	defer rdb.Close()
	clicks := stream.Topic{Name: "clicks", Stream: "example-legacy-clicks", Adopt: stream.Adopt(func(fields map[string]string) (stream.Event, error) {
		return stream.NewEvent("page.clicked", fields["user"], stream.ContentTypeJSON, []byte(fields["body"])), nil
	})}
	rdb.Del(ctx, clicks.Stream)
	// What some other program wrote, long before there were events.
	rdb.Do(ctx, "xadd", clicks.Stream, "1700000000000-0", "user", "ann", "body", `{"page":"/home"}`)

	pageClicked := stream.Define[struct{ Page string }]("page.clicked")
	reader, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: clicks})
	if err != nil {
		panic(err)
	}
	for entry, err := range reader.Entries(ctx) {
		if err != nil {
			panic(err)
		}
		click, err := pageClicked.Decode(entry.Event)
		fmt.Println(entry.Event.ID, entry.Event.Key, click.Page, err)
	}
	// Output: example-legacy-clicks/1700000000000-0 ann /home <nil>
}
