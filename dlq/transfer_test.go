package dlq_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// contents returns the fields of all letters, by partition and in order.
func (f *fixture) contents(t testing.TB) (all [][]string) {
	t.Helper()
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		fields := []string{fmt.Sprint(l.Partition)}
		for name, value := range l.Entry.Fields() {
			fields = append(fields, name, value)
		}
		all = append(all, fields)
	}
	return all
}

func (f *fixture) export(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	n, err := f.queue.Export(t.Context(), &b, dlq.Filter{})
	require.NoError(t, err)
	require.Equal(t, n, strings.Count(b.String(), "\n"))
	return b.String()
}

func (f *fixture) purge(t testing.TB) {
	t.Helper()
	var refs []dlq.Ref
	for l, err := range f.queue.All(t.Context(), dlq.Filter{}) {
		require.NoError(t, err)
		refs = append(refs, refOf(l))
	}
	n, err := f.queue.Purge(t.Context(), refs...)
	require.NoError(t, err)
	require.Equal(t, len(refs), n)
}

// odd makes letters of everything that is hard to keep.
func (f *fixture) odd(t testing.TB) {
	t.Helper()
	binary := event("k", "order.placed")
	binary.ContentType, binary.Data = "application/octet-stream", []byte("\x00\xff\xfe\n\r\"\\\u2028</script>")
	f.letter(t, 0, binary, dlq.ReasonUndecodable, "bad \xff text"[:4]+" text")
	for p, fields := range [][]string{
		{"sk-reason", "trimmed", "sk-origin", "x/1-1"},
		{"a", "", "a", "2", "", "no name", "\xff\xfe", "\xff", "sk-reason", "undecodable"},
	} {
		key := stream.KeyDead.Key(f.topic.StreamKey(p+1), "billing")
		require.NoError(t, f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: fields}).Err())
	}
}

func TestExportAndImportKeepEveryByte(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 250)
	f.odd(t)
	before, file := f.contents(t), f.export(t)
	f.purge(t)
	var steps int
	sum, err := f.queue.Import(t.Context(), strings.NewReader(file), dlq.Import{Progress: func(dlq.Imported) { steps++ }})
	require.NoError(t, err)
	require.Equal(t, dlq.Imported{Added: 253}, sum)
	require.Equal(t, 3, steps, "one call for the letters of each partition")
	require.Equal(t, before, f.contents(t))
}

func TestAnyFieldsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	rdb := testenv.Redis(t)
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	groups := 0
	rapid.Check(t, func(rt *rapid.T) {
		groups++
		group := fmt.Sprintf("g%d", groups)
		queue, err := dlq.Open(rdb, topic, group)
		require.NoError(rt, err)
		text := rapid.OneOf(rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) }), rapid.String())
		fields := append(rapid.SliceOfN(text, 0, 12).Draw(rt, "fields"), "sk-reason", "manual")
		if len(fields)%2 == 1 {
			fields = append([]string{"first"}, fields...)
		}
		args := []any{"xadd", stream.KeyDead.Key(topic.StreamKey(0), group), "*"}
		for _, f := range fields {
			args = append(args, f)
		}
		require.NoError(rt, rdb.Do(t.Context(), args...).Err())
		var file bytes.Buffer
		_, err = queue.Export(t.Context(), &file, dlq.Filter{})
		require.NoError(rt, err)
		require.NoError(rt, rdb.Del(t.Context(), stream.KeyDead.Key(topic.StreamKey(0), group)).Err())
		sum, err := queue.Import(t.Context(), &file, dlq.Import{})
		require.NoError(rt, err)
		require.Equal(rt, 1, sum.Added)
		for l, err := range queue.All(t.Context(), dlq.Filter{}) {
			require.NoError(rt, err)
			var back []string
			for name, value := range l.Entry.Fields() {
				back = append(back, name, value)
			}
			require.Equal(rt, fields, back)
		}
	})
}

func TestImportingAgainSaysWhatRepeats(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 20)
	file := f.export(t)
	load := func(how dlq.Import) dlq.Imported {
		sum, err := f.queue.Import(t.Context(), strings.NewReader(file), how)
		require.NoError(t, err)
		return sum
	}
	require.Equal(t, dlq.Imported{Repeated: 20}, load(dlq.Import{}), "they still stand here")
	require.Equal(t, dlq.Imported{Repeated: 20}, load(dlq.Import{Again: true}), "they still stand here")
	f.purge(t)
	require.Equal(t, dlq.Imported{Added: 20}, load(dlq.Import{}))
	require.Equal(t, dlq.Imported{Repeated: 20}, load(dlq.Import{}), "they have other IDs now")
	_, err := f.queue.RedriveAll(t.Context(), dlq.Redrive{})
	require.NoError(t, err)
	require.Equal(t, dlq.Imported{Repeated: 20}, load(dlq.Import{}), "they are being handled")
	require.Len(t, f.contents(t), 0)
	require.Equal(t, dlq.Imported{Added: 20}, load(dlq.Import{Again: true}))
	file += file
	require.Equal(t, dlq.Imported{Repeated: 40}, load(dlq.Import{}))
	ttl, err := f.rdb.TTL(t.Context(), stream.KeyImported.Key(f.topic.StreamKey(0), "billing")).Result()
	require.NoError(t, err)
	require.Positive(t, ttl, "what is remembered is forgotten some time")
}

func TestConcurrentAndBrokenImportsAddEachOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 600)
	before, file := f.contents(t), f.export(t)
	f.purge(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, err := f.queue.Import(ctx, strings.NewReader(file), dlq.Import{Progress: func(dlq.Imported) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 100, first.Added)
	sums := make([]dlq.Imported, 3)
	var runs sync.WaitGroup
	for i := range sums {
		runs.Go(func() {
			var err error
			if sums[i], err = f.queue.Import(t.Context(), strings.NewReader(file), dlq.Import{}); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	added := first.Added
	for _, s := range sums {
		added += s.Added
		require.Equal(t, 600, s.Added+s.Repeated)
	}
	require.Equal(t, 600, added)
	require.ElementsMatch(t, before, f.contents(t))
}

func TestImportNamesTheLineThatIsNoLetter(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.letter(t, 0, event("k", "order.placed"), dlq.ReasonAttempts, "no")
	good := strings.TrimSpace(f.export(t))
	f.purge(t)
	const reason = `[{"name":"sk-reason","value":"manual"}]`
	line := func(topic, group, letter, fields string) string {
		return fmt.Sprintf(`{"topic":%q,"group":%q,"letter":%q,"fields":%s}`, topic, group, letter, fields)
	}
	for name, c := range map[string]struct{ line, part string }{
		"no JSON":        {"letters", "no exported letter"},
		"other object":   {`{"id":"1"}`, "unknown field"},
		"two values":     {good + good, "something follows"},
		"ref":            {line("orders", "billing", "x", reason), "names no letter"},
		"topic":          {line("others", "billing", "0/1-1", reason), `topic "others"`},
		"group":          {line("orders", "mailing", "0/1-1", reason), `group "mailing"`},
		"partition":      {line("orders", "billing", "3/1-1", reason), "3 partitions"},
		"no fields":      {line("orders", "billing", "0/1-1", "[]"), "0 fields"},
		"many fields":    {line("orders", "billing", "0/1-1", "["+strings.Repeat(`{"name":"a"},`, 4000)+`{"name":"b"}]`), "4001 fields"},
		"no letter":      {line("orders", "billing", "0/1-1", `[{"name":"a"}]`), "sk-reason"},
		"no base64":      {line("orders", "billing", "0/1-1", `[{"name":"sk-reason","base64":"?"}]`), "base64"},
		"cut off":        {good[:len(good)-5], "no exported letter"},
		"without an end": {"[", "no exported letter"},
	} {
		sum, err := f.queue.Import(t.Context(), strings.NewReader(good+"\n\n"+c.line+"\n"+good), dlq.Import{Again: true})
		require.ErrorContains(t, err, "dlq: import line 3: ", name)
		require.ErrorContains(t, err, c.part, name)
		require.ErrorIs(t, err, dlq.ErrNoExport)
		require.Equal(t, 1, sum.Added, "%s: the letter before it is in", name)
	}
	_, err := f.queue.Import(t.Context(), io.LimitReader(endless{}, 100<<20), dlq.Import{})
	require.ErrorContains(t, err, "it has more than")
	sum, err := f.queue.Import(t.Context(), strings.NewReader(""), dlq.Import{})
	require.NoError(t, err)
	require.Zero(t, sum)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestImportIsRefusedWhereAKeyHasAnotherType(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.letter(t, 0, event("k", "order.placed"), dlq.ReasonAttempts, "no")
	file := f.export(t)
	f.purge(t)
	require.NoError(t, f.rdb.Set(t.Context(), stream.KeyImported.Key(f.topic.StreamKey(0), "billing"), "no set", 0).Err())
	_, err := f.queue.Import(t.Context(), strings.NewReader(file), dlq.Import{})
	require.ErrorContains(t, err, "WRONGTYPE")
	require.Empty(t, f.contents(t), "nothing is added that would be added again")
}

func TestExportEndsWithTheErrorOfItsWriter(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fill(t, 200)
	_, err := f.queue.Export(t.Context(), brokenWriter{}, dlq.Filter{})
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
