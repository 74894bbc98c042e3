// Command holdfast runs the server, and has the commands that its operator needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"holdfast/object"
)

type cli struct {
	Dev     devCmd     `cmd:"" help:"Run a server for development, with a Postgres of its own."`
	Serve   serveCmd   `cmd:"" help:"Run a server on a Postgres."`
	Migrate migrateCmd `cmd:"" help:"Change the database's schema."`
	Tenant  tenantCmd  `cmd:"" help:"Create and list tenants."`
	Key     keyCmd     `cmd:"" help:"Create, list and revoke API keys."`
	Export  exportCmd  `cmd:"" help:"Write all of a tenant, or of one of its users, to standard output."`
	Import  importCmd  `cmd:"" help:"Store an export in a tenant."`
	Erase   eraseCmd   `cmd:"" help:"Delete everything that a user owns, and remove the user's id from the rest."`
	Sweep   sweepCmd   `cmd:"" help:"Delete expired objects and put idle ones to sleep, once; servers do so by themselves."`
	Tick    tickCmd    `cmd:"" help:"Run the timers and jobs that are due, once; servers do so by themselves, unless they get no CPU between calls."`
	Object  objectCmd  `cmd:"" help:"Inspect objects, their history and their timers; restore them."`
	Type    typeCmd    `cmd:"" help:"Declare what objects of your own are like."`
	Replay  replayCmd  `cmd:"" help:"Send a recorded Gemini Live session to a server."`
	Version versionCmd `cmd:"" help:"Print the version."`

	ShowVersion kong.VersionFlag `help:"Print the version." name:"version"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	shareCores()
	os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.LookupEnv))
}

// shareCores lets more threads of Go run at once than there are cores, unless GOMAXPROCS says how many. Then the kernel shares
// a core, which it does every 3 ms and Go every 10: work that keeps a core busy delays small calls about half as long (make attack-table).
func shareCores() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(object.ThreadsPerCore * runtime.GOMAXPROCS(0))
	}
}

// lookup reads an environment variable.
type lookup func(name string) (value string, set bool)

// read returns the value of a variable, or of the file that the variable with _FILE after its name has, which is how secrets are mounted.
// "" is one that is not set.
func (env lookup) read(name string) (string, error) {
	const suffix = "_FILE"
	value, _ := env(name)
	file, _ := env(name + suffix)
	if file == "" {
		return value, nil
	}
	if value != "" {
		return "", wrongUsage("both %[1]s and %[1]s%[2]s are set; unset one of them", name, suffix)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", wrongUsage("%s%s: %v", name, suffix, err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// console connects a command to the world outside the process.
type console struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            lookup
	now            func() time.Time // this machine's clock
}

// Main runs one command until it is done, or until ctx ends. It returns the exit code: 0, 1 if the command failed, 2 if it was
// called wrongly. End-to-end tests run it in place of a process.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env lookup) (code int) {
	return (&console{stdin, stdout, stderr, env, time.Now}).run(ctx, args)
}

func (w *console) run(ctx context.Context, args []string) (code int) {
	// Kong calls Exit after --help, and continues if Exit returns.
	type exit int
	defer func() {
		switch r := recover().(type) {
		case nil:
		case exit:
			code = int(r)
		default:
			panic(r)
		}
	}()
	parser, err := kong.New(&cli{},
		kong.Name("holdfast"),
		kong.Description("Durable state for conversational assistants, on Postgres. A flag's environment variable is in parentheses; the flag wins. With _FILE after its name, it names a file that has the value."),
		kong.Writers(w.stdout, w.stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.Vars{"version": versionLine()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(w),
		environment(w.env),
	)
	if err != nil {
		fmt.Fprintln(w.stderr, "holdfast:", err)
		return 2
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(w.stderr, "holdfast: %v\nholdfast --help says more\n", err)
		return 2
	}
	err = command.Run()
	var wrong *usageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintln(w.stderr, "holdfast:", err)
		return 2
	case err != nil:
		fmt.Fprintln(w.stderr, "holdfast:", err)
		return 1
	}
	return 0
}

// usageError reports a wrong flag or variable, found after parsing, and says how to fix it.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func wrongUsage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// environment makes flags read their variables from env, not from the process. An empty variable counts as unset, because
// compose files and shells pass unset variables that way.
func environment(env lookup) kong.Option {
	names := map[*kong.Value][]string{}
	collect := kong.PostBuild(func(k *kong.Kong) error {
		return kong.Visit(k.Model, func(node kong.Visitable, next kong.Next) error {
			if f, ok := node.(*kong.Flag); ok && len(f.Tag.Envs) > 0 {
				names[f.Value] = f.Tag.Envs
				f.Help += " ($" + strings.Join(f.Tag.Envs, ", $") + ")"
				f.Envs, f.Tag.Envs = nil, nil
			}
			return next(nil)
		})
	})
	resolve := kong.Resolvers(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, f *kong.Flag) (any, error) {
		for _, name := range names[f.Value] {
			if v, err := env.read(name); v != "" || err != nil {
				return v, err
			}
		}
		return nil, nil
	}))
	return kong.OptionFunc(func(k *kong.Kong) error { return errors.Join(collect.Apply(k), resolve.Apply(k)) })
}
