package command

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// EnvName returns the environment variable of a flag: --redis-url is STREAMKEEL_REDIS_URL.
func EnvName(flag string) string {
	return "STREAMKEEL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// ApplyEnv sets the flags that were not given from the environment. An empty variable is none.
// The errors are of all variables whose value does not fit.
func ApplyEnv(flags *pflag.FlagSet, environ []string) []error {
	env := map[string]string{}
	for _, one := range environ {
		if name, value, ok := strings.Cut(one, "="); ok {
			env[name] = value
		}
	}
	var faults []error
	flags.VisitAll(func(f *pflag.Flag) {
		value := env[EnvName(f.Name)]
		if f.Changed || value == "" || !isSetting(f) {
			return
		}
		if err := set(flags, f, value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", EnvName(f.Name), err))
		}
	})
	return faults
}

// set sets a flag. One that does not take the value keeps its default, so that what is wrong
// with it is said once.
func set(flags *pflag.FlagSet, f *pflag.Flag, value string) error {
	err := flags.Set(f.Name, value)
	if err == nil {
		return nil
	}
	if f.Value.Type() != "stringSlice" {
		_ = f.Value.Set(f.DefValue) // it took it before
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) { // its text names the flag, which the caller does better
		return fmt.Errorf("invalid value %q: %w", invalid.GetValue(), invalid.Unwrap())
	}
	return err
}

func isSetting(f *pflag.Flag) bool { return f.Name != "help" && f.Name != "version" }

// Flags are the settings of a program without subcommands.
type Flags struct {
	*pflag.FlagSet
	program, summary string
	help, version    bool
}

// NewFlags returns flags that hold --help and --version so far.
func NewFlags(program, summary string) *Flags {
	f := &Flags{FlagSet: pflag.NewFlagSet(program, pflag.ContinueOnError), program: program, summary: summary}
	f.SetOutput(io.Discard)
	f.SortFlags = false
	f.BoolVar(&f.help, "help", false, "tell this, and end")
	f.BoolVar(&f.version, "version", false, "tell the version, and end")
	f.Usage = func() {}
	return f
}

// Read sets the flags from the arguments and the environment. done says that everything was
// said with the help or the version. The faults are all that are there, so that they can be
// told together with those of the values.
func (f *Flags) Read(p Process) (done bool, faults []error) {
	err := f.ParseAll(p.Args, func(flag *pflag.Flag, value string) error {
		if err := set(f.FlagSet, flag, value); err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", flag.Name, err))
		}
		return nil
	})
	if err != nil {
		return false, append(faults, fmt.Errorf("%w; %s --help lists the flags", err, f.program))
	}
	switch {
	case f.help:
		_, err = io.WriteString(p.Stdout, f.Help())
		return true, faultsOf(err)
	case f.version:
		_, err = fmt.Fprintf(p.Stdout, "%s %s\n", f.program, Version())
		return true, faultsOf(err)
	case f.NArg() > 0:
		// The argument is not repeated: it may be a URL with a password.
		faults = append(faults, fmt.Errorf("an argument that is no flag; %s --help lists the flags", f.program))
	}
	return false, append(faults, ApplyEnv(f.FlagSet, p.Env)...)
}

func faultsOf(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

// Help returns the text of --help.
func (f *Flags) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage: %s [flags]\n\nEach flag has an environment variable; the flag wins. Durations are written as 250ms, 30s, 5m or 1h30m.\n\n", f.summary, f.program)
	b.WriteString(FlagHelp(f.FlagSet))
	return b.String()
}

// FlagHelp lists flags with what they mean, their environment variables and defaults.
func FlagHelp(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		kind, usage := Describe(f)
		fmt.Fprintf(&b, "  --%s", f.Name)
		if kind != "" {
			fmt.Fprintf(&b, " %s", kind)
		}
		fmt.Fprintf(&b, "\n        %s", usage)
		if d := Default(f); d != "" && isSetting(f) {
			fmt.Fprintf(&b, " (default %s)", d)
		}
		if isSetting(f) {
			fmt.Fprintf(&b, " [%s]", EnvName(f.Name))
		}
		b.WriteByte('\n')
	})
	return b.String()
}

// Describe returns what a flag takes, and what it means.
func Describe(f *pflag.Flag) (kind, usage string) {
	kind, usage = pflag.UnquoteUsage(f)
	if f.Value.Type() == "bool" {
		kind = ""
	}
	return kind, usage
}

// Default returns a flag's default as it would be given, or "" for none.
func Default(f *pflag.Flag) string {
	d := f.DefValue
	switch f.Value.Type() {
	case "bool":
		return "off"
	case "duration":
		for _, unit := range []string{"0s", "0m"} {
			if rest, ok := strings.CutSuffix(d, unit); ok && rest != "" && strings.ContainsAny(rest[len(rest)-1:], "mh") {
				d = rest
			}
		}
	case "stringSlice":
		d = strings.Trim(d, "[]")
	}
	if slices.Contains([]string{"", "0"}, d) {
		return ""
	}
	return d
}
