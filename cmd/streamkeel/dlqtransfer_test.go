package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
	"github.com/streamkeel/streamkeel/stream"
)

func TestLettersAreExportedPurgedAndImported(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for i := range 5 {
		e := orderPlaced.Event(strconv.Itoa(i), order{i})
		e.Data = append(e.Data, "\xff\u009b"...)
		s.kill(e, dlq.ReasonUndecodable, "broken "+strconv.Itoa(i))
	}
	before := document[lettersDocument](s, dlqArgs("list")...).Letters
	file := filepath.Join(t.TempDir(), "letters.jsonl")
	require.Equal(t, exportDocument{"orders", "billing", file, 5}, document[exportDocument](s, dlqArgs("export", "--out="+file)...))
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(content), s.call(dlqArgs("export")...))
	require.Equal(t, 1, strings.Count(s.call(dlqArgs("export", "--key=3")...), "\n"))
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, dlqArgs("export", "--out="+file)...), "exists already")

	s.call(dlqArgs("purge", "--all", "--yes")...)
	require.Equal(t, importDocument{"orders", "billing", 5, 0}, document[importDocument](s, dlqArgs("import", file)...))
	after := document[lettersDocument](s, dlqArgs("list")...).Letters
	for i := range after {
		after[i].Ref, after[i].ID = before[i].Ref, before[i].ID // they are new
	}
	require.Equal(t, before, after)
	require.Contains(t, s.call(dlqArgs("import", file)...), "0 letters imported, 5 known before")
	require.Equal(t, 5, document[importDocument](s, dlqArgs("import", file, "--again")...).Added)

	var stdout, stderr commandtest.Buffer
	p := command.Process{Args: dlqArgs("import", "-"), Env: s.env, Stdin: bytes.NewReader(append(content, "{}\n"...)), Stdout: &stdout, Stderr: &stderr}
	require.Equal(t, command.ExitUnfit, run(t.Context(), p))
	require.Contains(t, stderr.String(), "line 6")
	require.Contains(t, stderr.String(), "5 letters before it are in")
	require.Equal(t, 1, strings.Count(stderr.String(), "\n"))
}

func TestExportThatFailsLeavesNoFile(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(orderPlaced.Event("a", order{1}), dlq.ReasonAttempts, "broken")
	require.NoError(t, s.rdb.Set(t.Context(), s.keys(1).Dead, "no stream", 0).Err())
	file := filepath.Join(t.TempDir(), "letters.jsonl")
	o := commandtest.Call(t, run, s.env, dlqArgs("export", "--out="+file)...)
	require.Equal(t, command.ExitFailure, o.Code)
	require.Contains(t, o.Stderr, "WRONGTYPE")
	require.NoFileExists(t, file)
}

func TestPayloadIsEditedAndNoted(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(stream.NewEvent("order.placed", "a", stream.ContentTypeJSON, []byte(`{"n":"one"}`)), dlq.ReasonUndecodable, "n is a text")
	ref := document[lettersDocument](s, dlqArgs("list")...).Letters[0].Ref
	file := filepath.Join(t.TempDir(), "payload.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"n":`), 0o600))
	commandtest.RequireUnfit(t, commandtest.Call(t, run, s.env, dlqArgs("redrive", ref, "--data="+file)...), "--data", "undecodable")
	require.EqualValues(t, 1, s.letters())
	require.NoError(t, os.WriteFile(file, []byte(`{"n":1}`), 0o600))
	require.Contains(t, s.call(dlqArgs("redrive", ref, "--data="+file, "--by=ada", "--keep-attempts")...), "1 of 1 letter redriven")

	p, err := dlq.ParseRef(ref)
	require.NoError(t, err)
	entry := s.take("c1", s.keys(p.Partition).Retry)
	require.JSONEq(t, `{"n":1}`, string(entry.Event.Data))
	require.Equal(t, "3", entry.Book["attempts"])
	s.buryRetry(entry, p.Partition)
	l := document[lettersDocument](s, dlqArgs("list")...).Letters[0]
	require.Equal(t, "ada", l.Editor)
	require.NotNil(t, l.Edited)
	require.Equal(t, "n is a text", l.FirstError)
	require.Equal(t, 1, l.Redrives)
	text := s.call(dlqArgs("show", l.Ref)...)
	for _, part := range []string{"first died", "undecodable: n is a text", "by ada", "SHA-256"} {
		require.Contains(t, text, part)
	}
}

func TestRedriveLeavesOutWhatKeepsDying(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(orderPlaced.Event("a", order{1}), dlq.ReasonAttempts, "broken")
	require.Equal(t, 1, document[changeDocument](s, dlqArgs("redrive", "--all", "--yes", "--rate=100", "--max-redrives=1")...).Done)
	e := orderPlaced.Event("a", order{1})
	p := s.topic.Partition(&e)
	s.buryRetry(s.take("c1", s.keys(p).Retry), p)
	left := document[changeDocument](s, dlqArgs("redrive", "--all", "--yes", "--max-redrives=1")...)
	require.Empty(t, left.Letters)
	require.Equal(t, map[string]int{"given back 1 times or more (--max-redrives)": 1}, left.LeftOut)
	require.Contains(t, s.call(dlqArgs("redrive", "--all", "--yes", "--max-redrives=1")...), "1 letter left out")
	require.Len(t, document[lettersDocument](s, dlqArgs("list", "--min-redrives=1")...).Letters, 1)
	require.Empty(t, document[lettersDocument](s, dlqArgs("list", "--min-redrives=2")...).Letters)
}

func TestPayloadsAreShownDecodedOrRaw(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	v2 := stream.Define[order]("order.placed", stream.DefinitionConfig[order]{Version: 2, Upcasters: []stream.Upcaster{stream.Upcast(1, func(o order) (order, error) { return o, nil })}})
	s.kill(v2.Event("a", order{41}), dlq.ReasonPermanent, "no")
	ref := document[lettersDocument](s, dlqArgs("list")...).Letters[0].Ref
	require.Contains(t, s.call(dlqArgs("show", ref)...), `data: {"n":41}`)
	require.Contains(t, s.call(dlqArgs("show", ref, "--raw")...), "data: base64 gaFuKQ==")
}

func TestNumbersOfPayloadsKeepTheirDigits(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.kill(stream.NewEvent("paid", "a", stream.ContentTypeJSON, []byte("{\n\"n\": 9007199254740993, \"a\": 1.10}")), dlq.ReasonPermanent, "no")
	ref := document[lettersDocument](s, dlqArgs("list")...).Letters[0].Ref
	require.Contains(t, s.call(dlqArgs("show", ref)...), `data: {"n":9007199254740993,"a":1.10}`)
	require.Contains(t, s.call(dlqArgs("show", ref, "--json")...), `9007199254740993`)
}

func TestProgressIsOneLineThatGoesAway(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &progress{w: &out, what: "redrive", total: 200}
	p.show(0)
	p.show(100)
	require.Equal(t, "\rredrive ["+strings.Repeat("-", 30)+"] 0 of 200\rredrive ["+strings.Repeat("#", 15)+strings.Repeat("-", 15)+"] 100 of 200", out.String())
	width := p.width
	out.Reset()
	p.end()
	require.Equal(t, "\r"+strings.Repeat(" ", width)+"\r", out.String())
	p = &progress{w: &out, what: "finding letters"}
	out.Reset()
	p.show(7)
	require.Equal(t, "\rfinding letters 7", out.String())
	a := &app{process: command.Process{Stderr: &out}}
	out.Reset()
	p = a.newProgress("redrive", 10)
	p.every = 0
	p.show(5)
	p.end()
	require.Empty(t, out.String(), "nobody looks")
}
