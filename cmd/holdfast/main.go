// Command holdfast is Holdfast: the server, and what an operator needs beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

type cli struct {
	Dev     devCmd     `cmd:"" help:"Run a server for development, with a Postgres of its own."`
	Serve   serveCmd   `cmd:"" help:"Run a server on a Postgres."`
	Migrate migrateCmd `cmd:"" help:"Change the database's schema."`
	Tenant  tenantCmd  `cmd:"" help:"Create and list tenants."`
	Key     keyCmd     `cmd:"" help:"Create, list and revoke API keys."`
	Export  exportCmd  `cmd:"" help:"Write all of a tenant, or of one of its users, to standard output."`
	Import  importCmd  `cmd:"" help:"Store an export in a tenant."`
	Erase   eraseCmd   `cmd:"" help:"Delete all that belongs to a user, and take the user's id out of the rest."`
	Sweep   sweepCmd   `cmd:"" help:"Delete what has expired and pack what is cold, once; servers do so by themselves."`
	Unpack  unpackCmd  `cmd:"" help:"Undo all packing, before a release is rolled back to that does not know of it."`
	Object  objectCmd  `cmd:"" help:"Look into objects: what they are, were and wait for; restore and fork them."`
	Replay  replayCmd  `cmd:"" help:"Send a recorded Gemini Live session to a server."`
	Version versionCmd `cmd:"" help:"Print the version."`

	ShowVersion kong.VersionFlag `help:"Print the version." name:"version"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.LookupEnv))
}

// lookup reads an environment variable.
type lookup func(name string) (value string, set bool)

// console is what a command has of the world around it.
type console struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            lookup
}

// Main runs one command until it is done, or until ctx ends, and returns the process's exit code: 0, 1 where it failed,
// 2 where it was called wrongly. It is main without the process, so that end-to-end tests can run it.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env lookup) (code int) {
	// Kong calls Exit after --help and goes on where that returns.
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
		kong.Description("Durable state for conversational assistants, on Postgres. A flag's environment variable is in parentheses; the flag wins."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.Vars{"version": versionLine()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&console{stdin, stdout, stderr, env}),
		environment(env),
	)
	if err != nil {
		fmt.Fprintln(stderr, "holdfast:", err)
		return 2
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "holdfast: %v\nholdfast --help says more\n", err)
		return 2
	}
	err = command.Run()
	var wrong *usageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintln(stderr, "holdfast:", err)
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "holdfast:", err)
		return 1
	}
	return 0
}

// usageError is a wrong flag or variable, found after parsing. It says how to mend it.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func wrongUsage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// environment makes flags read their variables from env instead of the process's environment, and an empty variable the
// same as none: that is how compose files and shells pass what is not set.
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
			if v, _ := env(name); v != "" {
				return v, nil
			}
		}
		return nil, nil
	}))
	return kong.OptionFunc(func(k *kong.Kong) error { return errors.Join(collect.Apply(k), resolve.Apply(k)) })
}
