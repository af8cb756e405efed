package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/quiet"
)

func TestExitSaysOneLineAndTellsWhoHasToAct(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code int
		line string
	}{
		{nil, ExitClean, ""},
		{errors.New("broken"), ExitFailure, "prog: broken\n"},
		{Unfit(errors.Join(errors.New("one"), errors.New("two"))), ExitUnfit, "prog: one; two\n"},
		{fmt.Errorf("outer: %w", Unfitf("inner")), ExitUnfit, "prog: outer: inner\n"},
		{errors.New("unknown command\n\nDid you mean this?\n\tother\n"), ExitFailure, "prog: unknown command; Did you mean this? other\n"},
		{errors.New("evil \x1b[2J\u202e text"), ExitFailure, "prog: evil \\x1b[2J\\u202e text\n"},
		{loggedError{errors.New("logged")}, ExitFailure, ""},
	} {
		var stderr strings.Builder
		require.Equal(t, c.code, Exit(&stderr, "prog", c.err, nil), "%v", c.err)
		require.Equal(t, c.line, stderr.String())
	}
	require.NoError(t, Unfit(nil))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, UnlessEnded(ended, errors.New("x")))
	require.Error(t, UnlessEnded(t.Context(), errors.New("x")))
}

func TestVisibleTextActsOnNoTerminal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain text, ünïcode ✓ 日本": "plain text, ünïcode ✓ 日本",
		"\x1b[31mred\x1b[0m":       `\x1b[31mred\x1b[0m`,
		"a\nb\r\tc\x00":            `a\nb\r\tc\x00`,
		"\u009b31m":                `\u009b31m`,
		"\x7f":                     `\x7f`,
		"\u202egnp.exe\u2066":      `\u202egnp.exe\u2066`,
		"zero\u200bwidth":          `zero\u200bwidth`,
		"bad \xff\xfe utf-8":       `bad \xff\xfe utf-8`,
		"replaced \uFFFD":          "replaced \uFFFD",
		"replaced \uFFFD \xff":     "replaced \uFFFD " + `\xff`,
		"tag \U000e0041":           `tag \U000e0041`,
	} {
		require.Equal(t, want, Visible(in))
	}
}

func FuzzVisible(f *testing.F) {
	f.Add("\x1b]0;title\x07")
	f.Add("\xc2\x9b1m\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Visible(s) {
			if !strconv.IsPrint(r) {
				t.Fatalf("%q in the text of %q", r, s)
			}
		}
	})
}

func TestSecretsAreTakenOutOfWhateverIsWritten(t *testing.T) {
	t.Parallel()
	quoted := `quo"te\` + canary
	escaped := url.UserPassword("", quoted).String()[1:]
	s := NewSecrets(Process{
		Args: []string{"--redis-url=redis://user:" + url.QueryEscape(canary) + "@host", "--short=redis://u:abc@host"},
		Env:  []string{"STREAMKEEL_POSTGRES_URL=postgres://u:" + escaped + "@h/d", "OTHER=redis://u:ma/l#formed?@word@host:1"},
	})
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(s.Writer(&out), nil))
	log.Error("failed", "err", "dial "+canary, "quoted", quoted, "url", "redis://user:"+url.QueryEscape(canary)+"@host", "escaped", escaped)
	text := slog.New(slog.NewTextHandler(s.Writer(&out), nil))
	text.Error("failed", "err", "dial "+canary, "quoted", quoted, "odd", "ma/l#formed?@word")
	require.Equal(t, 7, strings.Count(out.String(), masked), out.String())
	for _, form := range []string{canary, url.QueryEscape(canary), "formed", url.PathEscape(canary)} {
		require.NotContains(t, out.String(), form)
	}
	require.True(t, json.Valid([]byte(strings.SplitN(out.String(), "\n", 2)[0])))

	require.Equal(t, "redis://u:abc@host", s.Redact("redis://u:abc@host"), "what is short is part of many words")
	require.Equal(t, "text", (*Secrets)(nil).Redact("text"))
}

func TestSecretInAFileLosesItsLineEnd(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/password"
	require.NoError(t, os.WriteFile(file, []byte(canary+"\r\n"), 0o600))
	s := &Secrets{}
	secret, err := readSecret(file, s)
	require.NoError(t, err)
	require.Equal(t, canary, secret)
	require.Equal(t, masked, s.Redact(canary))
	require.NoError(t, os.WriteFile(file, []byte("\n"), 0o600))
	_, err = readSecret(file, s)
	require.ErrorContains(t, err, "empty")
}

func TestLogIsJSONOrTextAndOfALevel(t *testing.T) {
	t.Parallel()
	require.Len(t, (&LogFlags{Format: "xml"}).Validate(), 1)
	var out strings.Builder
	log := (&LogFlags{Format: "json", Level: slog.LevelWarn}).New(&out, nil)
	log.Info("quiet")
	log.Warn("loud")
	require.JSONEq(t, `"loud"`, string(field(t, out.String(), "msg")))
	out.Reset()
	(&LogFlags{Format: "text"}).New(&out, nil).Info("loud")
	require.Contains(t, out.String(), "level=INFO msg=loud")
}

func field(t *testing.T, line, name string) json.RawMessage {
	t.Helper()
	var record map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(line), &record))
	return record[name]
}

func TestMessagesOfTheRedisClientAreLoggedAtMostEveryTenSeconds(t *testing.T) {
	t.Parallel()
	var l redisLog
	l.Printf(t.Context(), "dropped: %s", "nobody listens yet")
	var out strings.Builder
	l.to.Store(quiet.New(slog.New(slog.NewJSONHandler(&out, nil))))
	for range 100 {
		l.Printf(t.Context(), "pool: failed to dial %s", "host")
	}
	require.Equal(t, 1, strings.Count(out.String(), "\n"))
	require.Contains(t, out.String(), "failed to dial host")
}
