package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/internal/servers"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// dlqArgs are a dlq command's arguments.
func dlqArgs(verb string, more ...string) []string {
	return append([]string{"dlq", verb, "--topic=orders", "--group=billing"}, more...)
}

func TestLettersAreListedFilteredPagedAndShown(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	require.Contains(t, s.call(dlqArgs("list")...), "no letters")
	event := orderPlaced.Event("a", order{41})
	s.kill(event, dlq.ReasonPermanent, "no such customer")
	s.kill(orderPlaced.Event("b", order{42}), dlq.ReasonAttempts, "timeout")
	s.kill(stream.NewEvent("order.moved", "a", stream.ContentTypeJSON, []byte(`{"to":"x"}`)), dlq.ReasonPermanent, "no such place")

	all := document[lettersDocument](s, dlqArgs("list")...)
	require.Len(t, all.Letters, 3)
	for _, c := range []struct {
		filter string
		want   int
	}{
		{"--reason=permanent", 2},
		{"--reason=permanent,attempts", 3},
		{"--type=order.placed", 2},
		{"--key=a", 2},
		{"--error=such", 2},
		{"--since=1h", 3},
		{"--until=1h", 0},
		{"--since=2020-01-01", 3},
		{"--since=" + time.Now().Add(time.Hour).Format(time.RFC3339), 0},
	} {
		require.Len(t, document[lettersDocument](s, dlqArgs("list", c.filter)...).Letters, c.want, c.filter)
	}
	var paged []letterRow
	for from := ""; ; {
		page := document[lettersDocument](s, dlqArgs("list", "--limit=1", "--from="+from)...)
		paged = append(paged, page.Letters...)
		if from = page.Next; from == "" {
			break
		}
		require.Contains(t, s.call(dlqArgs("list", "--limit=1")...), "more: --from ")
	}
	require.Equal(t, all.Letters, paged)

	var ref string
	for _, l := range all.Letters {
		if l.EventID == event.ID {
			ref = l.Ref
		}
	}
	shown := document[showDocument](s, dlqArgs("show", ref)...)
	require.Len(t, shown.Letters, 1)
	l := shown.Letters[0]
	require.Equal(t, "no such customer", l.Error)
	require.Equal(t, 3, l.Attempts)
	require.Equal(t, 4, l.Deliveries)
	require.Equal(t, s.topic.StreamKey(l.Partition), l.OriginStream)
	require.JSONEq(t, `{"n":41}`, string(l.Data), "msgpack is shown as what it says")
	text := s.call(dlqArgs("show", ref)...)
	for _, part := range []string{"no such customer", `data: {"n":41}`, "order.placed", event.ID} {
		require.Contains(t, text, part)
	}
	o := commandtest.Call(t, run, s.env, dlqArgs("show", "0/1-1")...)
	require.Equal(t, command.ExitFailure, o.Code)
	require.Contains(t, o.Stderr, "no such letter")
}

func TestRedriveGivesLettersBackToTheirGroup(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for i := range 5 {
		reason := dlq.ReasonAttempts
		if i == 0 {
			reason = dlq.ReasonPermanent
		}
		s.kill(orderPlaced.Event("a", order{i}), reason, "broken "+strconv.Itoa(i))
	}
	all := document[lettersDocument](s, dlqArgs("list")...).Letters

	one := document[changeDocument](s, dlqArgs("redrive", all[0].Ref)...)
	require.Equal(t, changeDocument{Topic: "orders", Group: "billing", Letters: []string{all[0].Ref}, Done: 1, Failed: []string{}}, one)
	require.EqualValues(t, 4, s.letters())
	back := s.take("c9", s.keys(all[0].Partition).Retry)
	require.Equal(t, all[0].EventID, back.Event.ID)

	dry := document[changeDocument](s, dlqArgs("redrive", "--all", "--reason=attempts", "--dry-run")...)
	require.True(t, dry.DryRun)
	require.Zero(t, dry.Done)
	require.Len(t, dry.Letters, 4)
	require.EqualValues(t, 4, s.letters(), "a dry run changes nothing")
	require.Contains(t, s.call(dlqArgs("redrive", "--all", "--dry-run")...), "4 letters would be redriven")

	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, dlqArgs("redrive", "--all")...), "--yes", "4 letters")
	require.EqualValues(t, 4, s.letters())
	limited := document[changeDocument](s, dlqArgs("redrive", "--all", "--limit=1", "--yes")...)
	require.Equal(t, 1, limited.Done)
	require.Contains(t, s.call(dlqArgs("redrive", "--all", "--yes")...), "3 of 3 letters redriven")
	require.Zero(t, s.letters())
	require.Contains(t, s.call(dlqArgs("redrive", "--all", "--yes")...), "no letters match")

	o := commandtest.Call(t, run, s.env, dlqArgs("redrive", "--json", all[0].Ref, "1/1-1")...)
	require.Equal(t, command.ExitFailure, o.Code)
	require.Len(t, decode[changeDocument](t, o.Stdout).Failed, 2)
	require.Contains(t, o.Stderr, "0 of 2 letters redriven")
	require.Equal(t, 1, strings.Count(o.Stderr, "\n"))
}

func TestLettersWithoutABodyAreLeftOutOfABulkRedrive(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(orderPlaced.Event("a", order{1}), dlq.ReasonAttempts, "broken")
	dead := s.keys(0).Dead
	require.NoError(t, s.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: dead, Values: []string{"sk-reason", "trimmed", "sk-origin", "x/1-1"}}).Err())
	done := document[changeDocument](s, dlqArgs("redrive", "--all", "--yes")...)
	require.Equal(t, 1, done.Done)
	require.Empty(t, done.Failed)
	left := document[lettersDocument](s, dlqArgs("list")...).Letters
	require.Len(t, left, 1)
	o := commandtest.Call(t, run, s.env, dlqArgs("redrive", left[0].Ref)...)
	require.Equal(t, command.ExitFailure, o.Code)
	require.Contains(t, o.Stderr, "nothing is left of the event")
	require.Contains(t, s.call(dlqArgs("show", left[0].Ref)...), "nothing is left")
}

func TestPurgeAsksOnATerminalAndNeedsYesElsewhere(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for i := range 3 {
		s.kill(orderPlaced.Event("a", order{i}), dlq.ReasonAttempts, "broken")
	}
	ref := document[lettersDocument](s, dlqArgs("list")...).Letters[0].Ref
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, dlqArgs("purge", ref)...), "--yes")
	require.EqualValues(t, 3, s.letters())

	ask := func(answer string, args ...string) (int, string) {
		var stdout, stderr commandtest.Buffer
		p := command.Process{Args: args, Env: s.env, Stdin: strings.NewReader(answer), Stdout: &stdout, Stderr: &stderr}
		a := &app{process: p, secrets: command.NewSecrets(p), terminal: true}
		return a.run(t.Context()), stderr.String()
	}
	for _, no := range []string{"", "\n", "n\n", "yess\n"} {
		code, stderr := ask(no, dlqArgs("purge", "--all")...)
		require.Equal(t, command.ExitFailure, code)
		require.Contains(t, stderr, "purge 3 letters of group billing, topic orders, for good? [y/N]")
		require.Contains(t, stderr, "nothing was changed")
	}
	require.EqualValues(t, 3, s.letters())
	code, _ := ask("y\n", dlqArgs("purge", ref)...)
	require.Equal(t, command.ExitClean, code)
	require.EqualValues(t, 2, s.letters())
	code, stderr := ask("", dlqArgs("redrive", "--all")...)
	require.Equal(t, command.ExitFailure, code, "no answer is no")
	require.Contains(t, stderr, "redrive 2 letters")
	require.Equal(t, 2, document[changeDocument](s, dlqArgs("purge", "--all", "--yes")...).Done)
	require.Zero(t, s.letters())

	o := commandtest.Call(t, run, s.env, dlqArgs("purge", "--yes", ref)...)
	require.Equal(t, command.ExitFailure, o.Code)
	require.Contains(t, o.Stderr, "0 of 1 letter purged: 1 letter not there")
}

func TestLettersOfAGroupThatLeftTheRegistryAreReached(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(orderPlaced.Event("a", order{1}), dlq.ReasonAttempts, "broken")
	require.NoError(t, stream.RemoveGroup(t.Context(), s.rdb, s.topic, "billing"))
	require.Len(t, document[lettersDocument](s, dlqArgs("list")...).Letters, 1)
	require.Equal(t, 1, document[changeDocument](s, dlqArgs("purge", "--all", "--yes")...).Done)
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, dlqArgs("list")...), `"billing"`, "there is none")
}

func TestTextOfEventsActsOnNoTerminal(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const evil = "\x1b[2J\x1b]0;owned\x07\u009b31m\u202e<script>\r\n\x7f"
	e := stream.NewEvent(evil, evil, stream.ContentTypeJSON, []byte(`{"x":"`+"\u009b\u202e"+`"}`))
	e.Attributes = map[string]string{"note": evil}
	s.kill(e, dlq.ReasonPermanent, evil)
	raw := stream.NewEvent("raw", "k", "application/octet-stream", []byte("\xff\xfe\x1b[2J"))
	s.kill(raw, dlq.ReasonUndecodable, "\xff"+evil)
	entry := s.deliver(evil, orderPlaced.Event("a", order{1}))
	require.NotZero(t, entry.ID)
	var refs []string
	for _, l := range document[lettersDocument](s, dlqArgs("list")...).Letters {
		refs = append(refs, l.Ref)
	}
	for _, args := range [][]string{
		dlqArgs("list"), dlqArgs("list", "--json"), dlqArgs("show", refs...), dlqArgs("show", append(refs, "--json")...),
		dlqArgs("show", append(refs, "--raw")...), dlqArgs("export"),
		{"pending", "--entries"},
		{"pending", "--entries", "--json"},
		{"consumers"},
		{"consumers", "--json"},
	} {
		out := s.call(args...)
		for i, r := range out {
			require.True(t, r == '\n' || strconv.IsPrint(r), "%q at %d of %v", r, i, args)
		}
	}
	shown := document[showDocument](s, dlqArgs("show", refs...)...)
	types := map[string]bool{}
	for _, l := range shown.Letters {
		types[l.Type] = true
		for _, f := range l.Fields {
			if l.Type == "raw" && f.Name == "data" {
				require.Equal(t, "\xff\xfe\x1b[2J", string(f.Base64))
			}
		}
	}
	require.True(t, types[evil], "JSON keeps the text as it is, escaped")

	o := commandtest.Call(t, run, s.env, "pending", "--topic", evil)
	commandtest.RequireUnfit(t, o, `\x1b[2J`)
	require.NotContains(t, o.Stderr, "\x1b")
}

func TestHostilePayloadIsShownRaw(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(stream.NewEvent("bomb", "k", stream.ContentTypeMsgpack, []byte("\xdd\xff\xff\xff\xff")), dlq.ReasonUndecodable, "undecodable")
	ref := document[lettersDocument](s, dlqArgs("list")...).Letters[0].Ref
	l := document[showDocument](s, dlqArgs("show", ref)...).Letters[0]
	require.Nil(t, l.Data)
	require.Contains(t, s.call(dlqArgs("show", ref)...), "base64 3f////8=")
}

func TestOperatorAndObserverRolesAreAllThatTheCommandLineNeeds(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, servers.RedisConfig{Quiet: true})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, admin.Close()) })
	s := &shop{t: t, rdb: admin, topic: stream.Topic{Name: "orders", Partitions: 2}}
	s.declare()
	for i := range 3 {
		s.kill(orderPlaced.Event("a", order{i}), dlq.ReasonAttempts, "broken")
	}
	s.deliver("c1", orderPlaced.Event("a", order{9}))
	released := s.deliver("c1", orderPlaced.Event("a", order{10}))
	s.bury(released, dlq.ReasonAttempts, "broken")
	refs := []string{}
	file := filepath.Join(t.TempDir(), "letters.jsonl")
	reading := func(env []string) {
		s.env = env
		for _, args := range [][]string{
			{"topics", "list"}, {"groups", "list"}, {"consumers"}, {"pending", "--entries", "--all"}, dlqArgs("list"), dlqArgs("export"),
		} {
			s.call(args...)
		}
		refs = nil
		for _, l := range document[lettersDocument](s, dlqArgs("list")...).Letters {
			refs = append(refs, l.Ref)
		}
		s.call(dlqArgs("show", refs[0])...)
	}
	observer := []string{"STREAMKEEL_REDIS_URL=" + commandtest.Role(t, admin, server.Addr(), "observer")}
	operator := []string{"STREAMKEEL_REDIS_URL=" + commandtest.Role(t, admin, server.Addr(), "operator")}
	require.NoError(t, admin.ConfigResetStat(t.Context()).Err())
	reading(observer)
	commandtest.RequireExact(t, admin, "observer")
	o := commandtest.Call(t, run, observer, dlqArgs("purge", "--yes", refs[0])...)
	commandtest.RequireUnfit(t, o, "NOPERM", "docs/operations.md")

	require.NoError(t, admin.ConfigResetStat(t.Context()).Err())
	require.NoError(t, admin.Do(t.Context(), "acl", "log", "reset").Err())
	reading(operator)
	s.call(dlqArgs("export", "--out="+file)...)
	s.call(dlqArgs("redrive", refs[0])...)
	s.call(dlqArgs("purge", "--yes", refs[1])...)
	s.call(dlqArgs("import", file)...)
	for _, steered := range []string{"pause", "resume", "seek --to=end --yes", "delete --yes --force"} {
		s.call(strings.Fields("groups " + steered + " --topic=orders --group=billing")...)
	}
	commandtest.RequireExact(t, admin, "operator")
}

func TestRedriveThatIsInterruptedSaysHowFarItGot(t *testing.T) {
	t.Parallel()
	binary := commandtest.Build(t, "cmd/streamkeel")
	s := newShop(t)
	for i := range 50 {
		s.kill(orderPlaced.Event(strconv.Itoa(i), order{i}), dlq.ReasonAttempts, "broken")
	}
	p := commandtest.Start(t, binary, s.env, dlqArgs("redrive", "--all", "--yes", "--rate=1")...)
	require.Eventually(t, func() bool { return s.letters() < 50 }, time.Minute, 10*time.Millisecond)
	p.Signal(os.Interrupt)
	require.Equal(t, command.ExitFailure, p.Wait())
	left := s.letters()
	require.Positive(t, left)
	require.Contains(t, p.Stderr(), strconv.Itoa(50-int(left))+" of 50 letters redriven; begin again")
	require.Equal(t, int(left), document[changeDocument](s, dlqArgs("redrive", "--all", "--yes")...).Done)
}

func TestExitCodesOfTheBinary(t *testing.T) {
	t.Parallel()
	binary := commandtest.Build(t, "cmd/streamkeel")
	s := newShop(t)
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"topics", "list"}, command.ExitClean},
		{dlqArgs("show", "0/1-1"), command.ExitFailure},
		{[]string{"topics", "list", "--redis-url=redis://127.0.0.1:1", "--start-timeout=100ms"}, command.ExitUnfit},
		{[]string{"nonsense"}, command.ExitUnfit},
		{[]string{"topics", "list", "--no-such"}, command.ExitUnfit},
		{[]string{"migrate", "status", "--postgres-url=postgres://127.0.0.1:1/x", "--start-timeout=100ms"}, command.ExitUnfit},
		{[]string{"topics", "list", "--redis-url=what"}, command.ExitUnfit},
		{dlqArgs("list", "--limit=many"), command.ExitUnfit},
		{dlqArgs("purge", "--all"), command.ExitClean}, // there is nothing to ask about
		{dlqArgs("import", "/no/such"), command.ExitUnfit},
	} {
		p := commandtest.Start(t, binary, s.env, c.args...)
		require.Equal(t, c.code, p.Wait(), p.Stderr())
		if c.code != command.ExitClean {
			require.Equal(t, 1, strings.Count(p.Stderr(), "\n"), p.Stderr())
		}
	}
}
