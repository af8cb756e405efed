package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/command/commandtest"
)

func TestEveryCommandAndFlagIsInTheDocs(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join(commandtest.Root(), "docs/cli.md"))
	require.NoError(t, err)
	text := string(content)
	p := command.Process{}
	root, _ := (&app{process: p, secrets: command.NewSecrets(p)}).root()
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, child := range cmd.Commands() {
			visit(child)
		}
		if cmd.HasSubCommands() || cmd.Hidden {
			return
		}
		require.True(t, strings.Contains(text, "$ "+cmd.CommandPath()), "docs/cli.md has no transcript of %s", cmd.CommandPath())
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && cmd.InheritedFlags().Lookup(f.Name) == nil {
				require.True(t, strings.Contains(text, "--"+f.Name), "docs/cli.md lacks --%s of %s", f.Name, cmd.CommandPath())
			}
		})
	}
	for _, cmd := range root.Commands() {
		if name := cmd.Name(); name != "demo" && name != "outbox" { // which have docs of their own
			visit(cmd)
		}
	}
}
