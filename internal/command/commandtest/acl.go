package commandtest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
)

// rolesFile has the rules of each role, one a line: ACL SETUSER <role> on ><password> …
const rolesFile = "docs/operations.md"

// Role makes the user of a role of docs/operations.md on a server, exactly as it stands there,
// and returns the user's URL. password is what the document has in its place.
func Role(t testing.TB, admin redis.UniversalClient, addr, role string) (redisURL string) {
	t.Helper()
	rules := rulesOf(t, role)
	args := []any{"acl", "setuser", role}
	for _, rule := range rules {
		if strings.HasPrefix(rule, ">") {
			rule = ">" + rolePassword
		}
		args = append(args, rule)
	}
	require.NoError(t, admin.Do(t.Context(), args...).Err())
	return "redis://" + role + ":" + rolePassword + "@" + addr
}

const rolePassword = "role-password"

func rulesOf(t testing.TB, role string) []string {
	t.Helper()
	file, err := os.Open(filepath.Join(Root(), rolesFile))
	require.NoError(t, err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if rules, found := strings.CutPrefix(lines.Text(), "ACL SETUSER "+role+" "); found {
			return strings.Fields(rules)
		}
	}
	require.NoError(t, lines.Err())
	require.Fail(t, "no rules", "role %s in %s", role, rolesFile)
	return nil
}

// RequireNothingDenied checks that a role was denied nothing on this server.
func RequireNothingDenied(t testing.TB, admin redis.UniversalClient, role string) {
	t.Helper()
	denied, err := admin.Do(t.Context(), "acl", "log").Slice()
	require.NoError(t, err)
	denied = slices.DeleteFunc(denied, func(entry any) bool {
		return strings.Contains(fmt.Sprint(entry), "client|setinfo") // what go-redis says of itself to Redis 7.2 and later, and can do without
	})
	require.Empty(t, denied, "denied to %s", role)
}

// RequireExact checks that a role, which did all that it does on this server, was denied
// nothing, and that its rules grant no command that it did not use. spare names commands that
// it uses only where things go wrong.
func RequireExact(t testing.TB, admin redis.UniversalClient, role string, spare ...string) {
	t.Helper()
	RequireNothingDenied(t, admin, role)
	used := map[string]bool{}
	stats, err := admin.Info(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	for line := range strings.Lines(stats) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
		used[name] = true
	}
	for _, rule := range rulesOf(t, role) {
		if name, found := strings.CutPrefix(rule, "+"); found && !used[name] && !slices.Contains(spare, name) {
			t.Errorf("%s grants %s to %s, which it never uses", rolesFile, name, role)
		}
	}
}

// RequireFlagTable checks that docs/operations.md has a program's flags, with their variables,
// defaults and meanings, as --help tells them.
func RequireFlagTable(t testing.TB, program string, flags *pflag.FlagSet) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(Root(), rolesFile))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(content), "<!-- flags of "+program+" -->\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "<!-- end -->")
	var table strings.Builder
	table.WriteString("| flag | variable | default | meaning |\n|---|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "version" {
			return
		}
		_, usage := command.Describe(f)
		d := command.Default(f)
		if d != "" {
			d = "`" + d + "`"
		}
		fmt.Fprintf(&table, "| `--%s` | `%s` | %s | %s |\n", f.Name, command.EnvName(f.Name), d, usage)
	})
	require.Equal(t, table.String(), section, "docs/operations.md: the flags of %s have changed", program)
}
