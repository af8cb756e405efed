package main

import (
	"context"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

func TestMain(m *testing.M) {
	defer commandtest.Remove()
	testenv.Main(m)
}

type order struct {
	N int `json:"n"`
}

var orderPlaced = stream.Define[order]("order.placed")

// shop is a topic of two partitions with a group.
type shop struct {
	t     testing.TB
	rdb   redis.UniversalClient
	env   []string
	topic stream.Topic
}

func newShop(t testing.TB) *shop {
	t.Helper()
	ns := testenv.Namespace(t)
	s := &shop{
		t: t, rdb: testenv.Redis(t), topic: stream.Topic{Name: "orders", Namespace: ns, Partitions: 2},
		env: []string{"STREAMKEEL_REDIS_URL=" + testenv.RedisURL(t), "STREAMKEEL_NAMESPACE=" + ns},
	}
	s.declare()
	return s
}

func (s *shop) declare() {
	s.t.Helper()
	require.NoError(s.t, stream.Declare(s.t.Context(), s.rdb, s.topic))
	require.NoError(s.t, stream.DeclareGroup(s.t.Context(), s.rdb, s.topic, stream.Group{Name: "billing", Kind: stream.GroupWork, MaxDeliveries: 20, MinIdleMs: 60000}))
	for p := range s.topic.Count() {
		_, err := pel.Ensure(s.t.Context(), s.rdb, s.keys(p), "0")
		require.NoError(s.t, err)
	}
}

func (s *shop) keys(p int) pel.Keys { return pel.KeysOf(s.topic.StreamKey(p), "billing") }

// deliver publishes an event and has a consumer take it.
func (s *shop) deliver(consumer string, e stream.Event) stream.Entry {
	s.t.Helper()
	key := s.topic.StreamKey(s.topic.Partition(&e))
	require.NoError(s.t, s.rdb.Do(s.t.Context(), e.AppendFields([]any{"xadd", key, "*"})...).Err())
	return s.take(consumer, key)
}

func (s *shop) take(consumer, key string) stream.Entry {
	s.t.Helper()
	reply, err := redisx.Raw(s.t.Context(), s.rdb, "xreadgroup", "group", "billing", consumer, "count", 1, "streams", key, ">")
	require.NoError(s.t, err)
	var entry stream.Entry
	require.NoError(s.t, stream.DecodeEntries(&reply, func(en stream.Entry, _ bool) error { entry = en; return nil }))
	return entry
}

// kill makes a letter of an event.
func (s *shop) kill(e stream.Event, reason dlq.Reason, text string) {
	s.t.Helper()
	s.bury(s.deliver("c1", e), reason, text)
}

func (s *shop) bury(en stream.Entry, reason dlq.Reason, text string) {
	s.t.Helper()
	for p := range s.topic.Count() {
		if s.topic.StreamKey(p) != en.Stream {
			continue
		}
		carried := pel.CarriedBy(&en, false)
		carried.Attempts, carried.Deliveries, carried.First = 3, 4, time.Now().Add(-time.Hour)
		_, err := pel.NewSettler(s.rdb, s.keys(p), "c1").Settle(s.t.Context(), false,
			pel.Settlement{Entry: en, Outcome: pel.DeadLetter, Carried: carried, Reason: reason, Error: text})
		require.NoError(s.t, err)
	}
}

// buryRetry makes a letter of an entry of the retry stream.
func (s *shop) buryRetry(en stream.Entry, p int) {
	s.t.Helper()
	_, err := pel.NewSettler(s.rdb, s.keys(p), "c1").Settle(s.t.Context(), false,
		pel.Settlement{Entry: en, Outcome: pel.DeadLetter, Carried: pel.CarriedBy(&en, true), Reason: dlq.ReasonAttempts, Error: "broken again"})
	require.NoError(s.t, err)
}

// call runs the command line, which must succeed, and returns what it prints.
func (s *shop) call(args ...string) string {
	s.t.Helper()
	o := commandtest.Call(s.t, run, s.env, args...)
	require.Equal(s.t, command.ExitClean, o.Code, o.Stderr)
	require.Empty(s.t, o.Stderr)
	return o.Stdout
}

// document runs the command line with --json, and returns the one document.
func document[T any](s *shop, args ...string) T {
	s.t.Helper()
	return decode[T](s.t, s.call(append(args, "--json")...))
}

func decode[T any](t testing.TB, out string) T {
	t.Helper()
	var v T
	decoder := json.NewDecoder(strings.NewReader(out))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&v), out)
	_, err := decoder.Token()
	require.ErrorIs(t, err, io.EOF, "one document")
	return v
}

func (s *shop) letters() int64 {
	s.t.Helper()
	q, err := dlq.Open(s.rdb, s.topic, "billing")
	require.NoError(s.t, err)
	n, err := q.Count(s.t.Context())
	require.NoError(s.t, err)
	return n
}

func TestBadInputIsOneLineThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for name, c := range map[string]struct {
		args  string
		parts []string
	}{
		"unknown command":    {"topcs", []string{"unknown command", "topics"}},
		"unknown subcommand": {"dlq lst", []string{`"lst"`, "export, import, list, purge, redrive, show"}},
		"unknown flag":       {"topics list --no-such", []string{"--no-such", "streamkeel topics list --help"}},
		"argument":           {"topics list x", []string{`"x"`}},
		"namespace":          {"topics list --namespace a:b", []string{"--namespace"}},
		"unreachable Redis":  {"topics list --redis-url redis://127.0.0.1:1 --start-timeout 100ms", []string{"connection refused", "--redis-url"}},
		"no Postgres":        {"migrate status", []string{"--postgres-url is missing"}},
		"wrong schema":       {"migrate up --postgres-url postgres://127.0.0.1:1/d --schema A", []string{`--schema: schema "A" is not [a-z_]`}},
		"unknown topic":      {"pending --topic ordrs", []string{`"ordrs"`, "orders"}},
		"unknown group":      {"dlq list --topic orders --group biling", []string{`"biling"`, "billing"}},
		"no topic":           {"dlq list", []string{"--topic and --group are required"}},
		"no letter":          {"dlq show --topic orders --group billing", []string{"partition/ID"}},
		"bad letter":         {"dlq show --topic orders --group billing x 1", []string{`"x"`, `"1"`}},
		"bad limit":          {"dlq list --topic orders --group billing --limit 0", []string{"--limit 0"}},
		"bad page":           {"dlq list --topic orders --group billing --from x", []string{"--from"}},
		"bad filters":        {"dlq list --topic orders --group billing --reason sad --since soon --until later", []string{`--reason "sad"`, "--since", "--until"}},
		"nothing named":      {"dlq purge --topic orders --group billing", []string{"--all"}},
		"named and all":      {"dlq redrive --topic orders --group billing --all 0/1-1", []string{"not both"}},
		"unasked":            {"pending --min-idle 5m", []string{"--entries"}},
		"page of no one":     {"pending --entries --from main/1-1", []string{"--partition"}},
		"bad rate":           {"dlq redrive --topic orders --group billing --all --rate -1 --max-redrives 0", []string{"--rate -1", "--max-redrives 0"}},
		"edit of many":       {"dlq redrive --topic orders --group billing --all --data -", []string{"--data", "one letter"}},
		"edit by nobody":     {"dlq redrive --topic orders --group billing 0/1-1 --by me", []string{"--data"}},
		"no such payload":    {"dlq redrive --topic orders --group billing 0/1-1 --data /no/such", []string{"--data", "/no/such"}},
		"export as document": {"dlq export --topic orders --group billing --json", []string{"--out"}},
		"export to nowhere":  {"dlq export --topic orders --group billing --out /no/such/file", []string{"--out", "/no/such/file"}},
		"import of nothing":  {"dlq import --topic orders --group billing", []string{"name one file"}},
		"no such file":       {"dlq import --topic orders --group billing /no/such", []string{"/no/such"}},
		"backward times":     {"dlq export --topic orders --group billing --since 1h --until 2h", []string{"--until lies before --since"}},
		"silent before":      {"consumers --silent -1m", []string{"--silent -1m"}},
		"consumers of none":  {"consumers --group biling", []string{`"biling"`, "billing"}},
		"no group":           {"groups pause --topic orders", []string{"--topic and --group are required"}},
		"pause of none":      {"groups pause --topic orders --group biling", []string{`"biling"`, "billing"}},
		"pause nowhere":      {"groups resume --topic orders --group billing --partition 2", []string{"--partition 2", "0 to 1"}},
		"seek to nothing":    {"groups seek --topic orders --group billing --yes", []string{"--to", "an ID (1700000000000-0)"}},
		"seek to when":       {"groups seek --topic orders --group billing --yes --to soon", []string{`--to "soon"`}},
		"seek unasked":       {"groups seek --topic orders --group billing --to end", []string{"say --yes"}},
		"delete unasked":     {"groups delete --topic orders --group billing", []string{"say --yes"}},
		"no such partition":  {"pending --partition 7", []string{"--partition 7", "0 to 1"}},
		"small demo":         {"demo --events 5 --orders 1 --timeout 1s --break it", []string{"--events 5", "--orders 1", "--timeout 1s", `--break "it"`}},
		"demo elsewhere":     {"demo --redis-url redis://127.0.0.1:1", []string{"STREAMKEEL_TEST_REDIS_URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, strings.Fields(c.args)...), c.parts...)
		})
	}
	commandtest.RequireUnfit(t, commandtest.Call(t, run, []string{"STREAMKEEL_JSON=perhaps"}, "version"), "STREAMKEEL_JSON")
}

func TestUnknownLayoutIsUnfit(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	require.NoError(t, s.rdb.Set(t.Context(), s.topic.Namespace+":$layout", "999", 0).Err())
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, "topics", "list"), "unknown layout")
}

func TestHelpNamesTheVariables(t *testing.T) {
	t.Parallel()
	o := commandtest.Call(t, run, nil, "--help")
	require.Equal(t, command.ExitClean, o.Code)
	for _, part := range []string{"migrate", "topics", "groups", "pending", "consumers", "dlq", "version", "STREAMKEEL_REDIS_URL", "STREAMKEEL_NAMESPACE"} {
		require.Contains(t, o.Stdout, part)
	}
	o = commandtest.Call(t, run, nil, "dlq", "redrive", "--help")
	require.NotContains(t, o.Stdout, "STREAMKEEL_REDIS_URL", "global flags are told once")
	require.Contains(t, o.Stdout, "streamkeel --help")
	require.Equal(t, command.ExitClean, commandtest.Call(t, run, nil, "dlq").Code)
}

func TestVersionIsTold(t *testing.T) {
	t.Parallel()
	o := commandtest.Call(t, run, nil, "version")
	require.Contains(t, o.Stdout, "streamkeel ")
	v := decode[versionDocument](t, commandtest.Call(t, run, nil, "version", "--json").Stdout)
	require.Equal(t, stream.Layout, v.Layout)
	require.Positive(t, v.Migration)
}

func TestTopicsAndGroupsAreListed(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(orderPlaced.Event("a", order{1}), dlq.ReasonPermanent, "broken")
	s.deliver("c1", orderPlaced.Event("a", order{2}))
	topics := document[topicsDocument](s, "topics", "list")
	require.Equal(t, topicsDocument{Namespace: s.topic.Namespace, Topics: []topicRow{{Topic: "orders", Partitions: 2, Entries: 2, Groups: []string{"billing"}}}}, topics)
	require.Contains(t, s.call("topics", "list"), "billing")

	groups := document[groupsDocument](s, "groups", "list")
	require.Len(t, groups.Groups, 1)
	g := groups.Groups[0]
	require.Equal(t, stream.GroupWork, g.Kind)
	require.EqualValues(t, 1, g.Pending)
	require.EqualValues(t, 1, g.Letters)
	require.EqualValues(t, 0, *g.Lag)
	require.EqualValues(t, 60, g.MinIdleSeconds)
	require.Contains(t, s.call("groups", "list", "--topic=orders"), "billing")

	require.NoError(t, s.rdb.Do(t.Context(), "xgroup", "destroy", s.topic.StreamKey(1), "billing").Err())
	require.Contains(t, s.call("groups", "list"), "missing at 1 partitions")
	require.Nil(t, document[groupsDocument](s, "groups", "list").Groups[0].Lag, "what is unknown is null")
	require.NoError(t, s.rdb.Del(t.Context(), s.topic.StreamKey(1)).Err())
	require.NoError(t, s.rdb.Set(t.Context(), s.topic.StreamKey(1), "no stream", 0).Err())
	require.Contains(t, s.call("groups", "list"), "WRONGTYPE")

	empty := &shop{t: t, env: []string{s.env[0], "STREAMKEEL_NAMESPACE=" + testenv.Namespace(t)}}
	require.Contains(t, empty.call("topics", "list"), "no topics")
	require.Contains(t, empty.call("groups", "list"), "no groups")
	require.JSONEq(t, `[]`, string(field(t, empty.call("topics", "list", "--json"), "topics")))
}

func TestGroupsArePausedMovedAndDeleted(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	group := func(verb string, more ...string) []string {
		return append([]string{"groups", verb, "--topic=orders", "--group=billing"}, more...)
	}
	require.Equal(t, steerDocument{"orders", "billing", "paused", []int{1}}, document[steerDocument](s, group("pause", "--partition=1")...))
	require.Equal(t, 1, document[groupsDocument](s, "groups", "list").Groups[0].Paused)
	require.Contains(t, s.call("groups", "list"), "paused at 1 partitions")
	require.Contains(t, s.call(group("pause")...), "paused at 2 partitions")
	require.Equal(t, 2, document[groupsDocument](s, "groups", "list").Groups[0].Paused)
	s.call(group("resume")...)
	require.Zero(t, document[groupsDocument](s, "groups", "list").Groups[0].Paused)

	first := s.deliver("c1", orderPlaced.Event("a", order{1}))
	second := s.deliver("c1", orderPlaced.Event("a", order{2}))
	for to, next := range map[string]stream.ID{"start": first.ID, "2020-01-01": first.ID, "1h": first.ID, first.ID.String(): second.ID} {
		s.call(group("seek", "--yes", "--to="+to)...)
		require.Equal(t, next, s.take("c1", first.Stream).ID, to)
	}
	s.call(group("seek", "--yes", "--to=end")...)
	last := s.deliver("c1", orderPlaced.Event("a", order{3}))
	require.Positive(t, last.ID.Compare(second.ID))

	_, err := pel.NewSettler(s.rdb, s.keys(0), "c1").Extend(t.Context(), s.topic.StreamKey(0), nil)
	require.NoError(t, err)
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, group("delete", "--yes")...), "living consumers", "--force")
	require.Contains(t, s.call(group("delete", "--yes", "--force", "--letters")...), "deleted")
	require.Empty(t, document[groupsDocument](s, "groups", "list").Groups)
	require.Zero(t, s.rdb.Exists(t.Context(), s.keys(0).Hash, s.keys(0).Members).Val())
}

func TestProjectionsAreNotSteeredHere(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	require.NoError(t, stream.DeclareGroup(t.Context(), s.rdb, s.topic, stream.Group{Name: "totals", Kind: stream.GroupProjection}))
	for _, verb := range []string{"pause", "resume", "seek"} {
		args := []string{"groups", verb, "--topic=orders", "--group=totals"}
		if verb == "seek" {
			args = append(args, "--to=end", "--yes")
		}
		commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, args...), "is a projection")
	}
}

func field(t *testing.T, out, name string) json.RawMessage {
	t.Helper()
	return decode[map[string]json.RawMessage](t, out)[name]
}

func TestPendingTellsWhoHasWhatAndForHowLong(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	require.Contains(t, s.call("pending"), "nothing is pending")
	var entries []stream.Entry
	for i, consumer := range []string{"c1", "c1", "c2"} {
		entries = append(entries, s.deliver(consumer, orderPlaced.Event("a", order{i})))
	}
	require.NoError(t, s.rdb.Do(t.Context(), "xclaim", entries[0].Stream, "billing", "c1", 0, entries[0].ID.String(), "idle", 3_600_000, "retrycount", 7, "justid").Err())

	d := document[pendingDocument](s, "pending")
	require.Len(t, d.Pending, 1, "partitions with nothing pending are left out")
	p := d.Pending[0]
	require.EqualValues(t, 3, p.Pending)
	require.Equal(t, 7, p.MostDeliveries)
	require.Positive(t, p.OldestPendingSeconds)
	require.Len(t, p.Members, 2)
	require.Equal(t, "c1", p.Members[0].Consumer)
	require.EqualValues(t, 2, p.Members[0].Pending)
	require.Nil(t, p.Entries)
	require.Len(t, document[pendingDocument](s, "pending", "--all").Pending, 2)
	require.Contains(t, s.call("pending"), "c1: 2 (silent")

	d = document[pendingDocument](s, "pending", "--entries", "--min-idle=30m")
	require.Len(t, d.Pending[0].Entries, 1)
	require.Equal(t, entries[0].ID.String(), d.Pending[0].Entries[0].ID)
	require.InDelta(t, 3600, d.Pending[0].Entries[0].IdleSeconds, 60)
	require.Equal(t, 7, d.Pending[0].Entries[0].Deliveries)

	partition := number(p.Partition)
	d = document[pendingDocument](s, "pending", "--entries", "--limit=2", "--topic=orders", "--group=billing", "--partition="+partition)
	require.Len(t, d.Pending[0].Entries, 2)
	require.NotEmpty(t, d.Pending[0].Next)
	require.Contains(t, s.call("pending", "--entries", "--limit=2"), "--from "+d.Pending[0].Next)
	d = document[pendingDocument](s, "pending", "--entries", "--topic=orders", "--group=billing", "--partition="+partition, "--from="+d.Pending[0].Next)
	require.Len(t, d.Pending[0].Entries, 1)
	require.Equal(t, "c2", d.Pending[0].Entries[0].Consumer)
	require.Empty(t, d.Pending[0].Next)
}

func TestConsumersAreListedWithWhatTheyHaveInHand(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	require.Contains(t, s.call("consumers"), "no such consumers")
	taken := map[int]bool{}
	for i := range 6 {
		e := orderPlaced.Event(strconv.Itoa(i), order{i})
		taken[s.topic.Partition(&e)] = true
		s.deliver("c1", e)
	}
	require.Len(t, taken, 2, "both partitions")
	old := s.deliver("c2", orderPlaced.Event("a", order{7}))
	require.NoError(t, s.rdb.Do(t.Context(), "xclaim", old.Stream, "billing", "c3", 0, old.ID.String(), "justid").Err())

	d := document[consumersDocument](s, "consumers")
	require.Len(t, d.Consumers, 3)
	require.Equal(t, "c1", d.Consumers[0].Consumer)
	require.EqualValues(t, 6, d.Consumers[0].Pending)
	require.Equal(t, 2, d.Consumers[0].Partitions)
	require.Zero(t, d.Consumers[1].Pending, "one with nothing in hand is listed too")
	require.EqualValues(t, 1, d.Consumers[2].Pending)
	require.Contains(t, s.call("consumers", "--topic=orders", "--group=billing"), "SILENT FOR")
	require.Empty(t, document[consumersDocument](s, "consumers", "--silent=1h").Consumers)
}

func TestMigrationsAreAppliedOnceAndTold(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresURL(t) // migrated
	status := decode[migrateDocument](t, commandtest.Call(t, run, nil, "migrate", "status", "--json", "--postgres-url="+server).Stdout)
	require.Zero(t, status.Missing)
	require.NotEmpty(t, status.Migrations)
	require.Equal(t, "applied", status.Migrations[0].State)
	require.NotNil(t, status.Migrations[0].AppliedAt)

	pool := testenv.Postgres(t)
	_, err := pool.Exec(t.Context(), "DROP SCHEMA streamkeel CASCADE")
	require.NoError(t, err)
	o := commandtest.Call(t, run, []string{"STREAMKEEL_POSTGRES_URL=" + server}, "migrate", "status")
	require.Equal(t, command.ExitClean, o.Code, o.Stderr)
	require.Contains(t, o.Stdout, "missing")
	up := decode[migrateDocument](t, commandtest.Call(t, run, nil, "migrate", "up", "--json", "--postgres-url="+server).Stdout)
	require.Len(t, up.Applied, len(up.Migrations))
	require.Zero(t, up.Missing)
	o = commandtest.Call(t, run, nil, "migrate", "up", "--postgres-url="+server)
	require.Equal(t, "nothing to apply\n", o.Stdout)
}

func TestMigrationsOfAnotherSchemaAreItsOwn(t *testing.T) {
	t.Parallel()
	env := []string{"STREAMKEEL_POSTGRES_URL=" + testenv.PostgresURL(t), "STREAMKEEL_SCHEMA=billing"}
	o := commandtest.Call(t, run, env, "outbox", "status")
	commandtest.RequireUnfit(t, o, "streamkeel migrate up")
	up := decode[migrateDocument](t, commandtest.Call(t, run, env, "migrate", "up", "--json").Stdout)
	require.Len(t, up.Applied, len(up.Migrations))
	o = commandtest.Call(t, run, env, "outbox", "status")
	require.Equal(t, command.ExitClean, o.Code, o.Stderr)
	o = commandtest.Call(t, run, env, "migrate", "up")
	require.Equal(t, "nothing to apply\n", o.Stdout)
}

func TestEndedCommandIsNoFailure(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr strings.Builder
	code := run(ctx, command.Process{Args: []string{"topics", "list"}, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &stderr})
	require.Equal(t, command.ExitClean, code)
	require.Empty(t, stderr.String())
}
