// Command streamkeel is the operator's command line: migrations, topics, groups, consumers,
// what is pending, and the dead letters.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/internal/demo"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/outbox"
	"github.com/streamkeel/streamkeel/stream"
)

const program = "streamkeel"

func main() { command.Main(run) }

// commands returns the subcommands, in the order of the help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		newDemoCommand(a),
		newMigrateCommand(a),
		newTopicsCommand(a),
		newGroupsCommand(a),
		newPendingCommand(a),
		newConsumersCommand(a),
		newDLQCommand(a),
		newOutboxCommand(a),
		newVersionCommand(a),
	}
}

// app is what the commands share.
type app struct {
	process  command.Process
	secrets  *command.Secrets
	terminal bool // somebody can be asked

	json      bool
	namespace string
	redis     command.RedisFlags
	postgres  command.PostgresFlags
	outbox    outbox.Schema // set by withPool
	start     command.StartFlags
}

// run is the program. It returns the exit code.
func run(ctx context.Context, p command.Process) int {
	stdin, isFile := p.Stdin.(*os.File)
	a := &app{process: p, secrets: command.NewSecrets(p), terminal: isFile && term.IsTerminal(int(stdin.Fd()))}
	if config := a.env(demo.WorkerVar); config != "" { // a worker of the demo's
		return command.Exit(p.Stderr, program, demo.Work(ctx, config), a.secrets)
	}
	return a.run(ctx)
}

func (a *app) run(ctx context.Context) int {
	root, began := a.root()
	err := root.ExecuteContext(ctx)
	if err != nil && !*began { // it is about the command line
		err = command.Unfit(err)
	}
	if !errors.As(err, new(unfinished)) {
		err = command.UnlessEnded(ctx, err)
	}
	return command.Exit(a.process.Stderr, program, err, a.secrets)
}

// unfinished is the error of a command that was ended with a part of its work done.
type unfinished struct{ error }

// root returns the whole command, and whether one of the subcommands began its work.
func (a *app) root() (root *cobra.Command, began *bool) {
	began = new(bool)
	root = &cobra.Command{
		Use:           program,
		Short:         "Operate Streamkeel: migrations, topics, groups, consumers, pending entries and dead letters",
		Long:          "Operate Streamkeel: migrations, topics, groups, consumers, pending entries and dead letters.\n\nGlobal flags have environment variables; the flag wins. With --json a command prints one JSON document.",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			faults := command.ApplyEnv(cmd.Root().PersistentFlags(), a.process.Env)
			faults = slices.Concat(faults, a.start.Validate())
			if !stream.ValidName(a.namespace) {
				faults = append(faults, fmt.Errorf("--namespace %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", a.namespace))
			}
			if err := errors.Join(faults...); err != nil {
				return err
			}
			*began = true
			return nil
		},
	}
	root.SetArgs(a.process.Args)
	root.SetIn(a.process.Stdin)
	root.SetOut(a.process.Stdout)
	root.SetErr(a.process.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.SortFlags, root.Flags().SortFlags = false, false
	flags.BoolVar(&a.json, "json", false, "print one JSON document")
	flags.StringVar(&a.namespace, "namespace", stream.DefaultNamespace, "namespace of the topics")
	a.redis.Register(flags)
	a.redis.AllowEviction = true // whoever looks at a server needs it most when it is unfit
	a.postgres.Register(flags)
	a.start.Register(flags, 5*time.Second)
	flags.VisitAll(func(f *pflag.Flag) { f.Usage += " [" + command.EnvName(f.Name) + "]" })
	root.AddCommand(a.commands()...)
	for _, cmd := range root.Commands() {
		cmd.SetUsageTemplate(withoutGlobals(root.UsageTemplate()))
	}
	return root, began
}

// withoutGlobals returns the template with a hint in place of the global flags, which would be
// most of every help.
func withoutGlobals(template string) string {
	return strings.Replace(template, "Global Flags:\n{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}",
		"Global flags, of connections and output: streamkeel --help", 1)
}

// parent returns a command that only has others below it.
func parent(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			var names []string
			for _, child := range cmd.Commands() {
				names = append(names, child.Name())
			}
			return fmt.Errorf("%s has no command %.60q; it has %s", cmd.CommandPath(), args[0], strings.Join(names, ", "))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(children...)
	return cmd
}

// openRedis returns a client of a server that answers. The caller closes it.
func (a *app) openRedis(ctx context.Context) (redis.UniversalClient, error) {
	cfg, faults := a.redis.Config(program, a.secrets)
	if len(faults) > 0 {
		return nil, command.Unfit(errors.Join(faults...))
	}
	if err := command.CheckRedis(ctx, cfg, a.start.Timeout); err != nil {
		return nil, err
	}
	return cfg.Open(), nil
}

// withRedis makes a command's function one that gets a client.
func (a *app) withRedis(fn func(ctx context.Context, rdb redis.UniversalClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		rdb, err := a.openRedis(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = rdb.Close() }() // nothing is in hand
		err = fn(cmd.Context(), rdb, args)
		switch {
		case redisx.IsNoPerm(err):
			return command.Unfitf("%w; give the ACL user what docs/operations.md lists for operators", err)
		case errors.Is(err, stream.ErrLayout):
			return command.Unfitf("%w; use the version of Streamkeel that wrote it", err)
		}
		return err
	}
}

// topic returns a topic of the registry.
func (a *app) topic(ctx context.Context, rdb redis.UniversalClient, name string) (stream.Topic, error) {
	topics, err := stream.Topics(ctx, rdb, a.namespace)
	if err != nil {
		return stream.Topic{}, err
	}
	var names []string
	for _, t := range topics {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return stream.Topic{}, command.Unfitf("no topic %.140q in namespace %s; there is %s", name, a.namespace, listOf(names))
}

func listOf(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (a *app) noGroup(group string, names []string) error {
	slices.Sort(names)
	return command.Unfitf("no group %.140q in namespace %s; there is %s", group, a.namespace, listOf(slices.Compact(names)))
}
