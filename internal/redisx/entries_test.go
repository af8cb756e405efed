package redisx_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/internal/testenv"
)

// Whatever the entries of a call have in common, and in whatever order they come, the script sees each as it is.
func TestScriptSeesEntriesAsTheyAre(t *testing.T) {
	t.Parallel()
	rdb, keys := testenv.Redis(t), []string{testenv.Namespace(t)}
	script := redisx.NewEntriesScript(`
local seen, next = {}, 2
for n = 1, tonumber(ARGV[1]) do
  local fields, count
  fields, count, next = entry(next)
  seen[n] = { unpack(fields, 1, count) }
end
return { seen, #ARGV - next }`)
	values := rapid.SampledFrom([]string{"", "0", "1", "a", "\x00\r\nтекст", strings.Repeat("l", 200), strings.Repeat("l", 201)})
	rapid.Check(t, func(r *rapid.T) {
		var entries redisx.Entries
		want := []any{}
		for range rapid.IntRange(0, 12).Draw(r, "entries") {
			var fields, texts []any
			for _, name := range []string{"id", "type", "x-1", "data"} {
				if rapid.IntRange(0, 4).Draw(r, "has it") == 0 {
					continue
				}
				value := values.Draw(r, name)
				texts = append(texts, name, value)
				if rapid.Bool().Draw(r, "by pointer") {
					fields = append(fields, name, &value)
				} else {
					fields = append(fields, name, value)
				}
			}
			if len(fields) > 0 {
				entries.Add(fields)
				want = append(want, texts)
			}
		}
		args := entries.AppendTo([]any{len(want)})
		require.Equal(r, args, entries.AppendTo([]any{len(want)}), "said the same each time")
		seen, err := script.Run(t.Context(), rdb, keys, args...).Slice()
		require.NoError(r, err)
		require.Equal(r, []any{want, int64(-1)}, seen)
	})
}

func TestWhatEntriesHaveInCommonIsSaidOnce(t *testing.T) {
	t.Parallel()
	var entries redisx.Entries
	for _, id := range []string{"1", "2", "3"} {
		long := strings.Repeat("l", 201)
		entries.Add([]any{"id", id, "type", "same", "data", &long})
	}
	args := entries.AppendTo(nil)
	require.Equal(t, []any{0, 3, 3, "id", "type", "data", []byte("010"), "same"}, args[:8])
	require.Len(t, args[8:], 6, "ids and data")
}
