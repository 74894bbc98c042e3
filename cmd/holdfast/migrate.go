package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"holdfast/db"
)

// migrateCmd is `holdfast migrate`.
type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Bring the schema up to date, and make the server's login."`
	Down   migrateDownCmd   `cmd:"" help:"Undo the newest migration. What it holds is lost."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations."`
	State  migrateStateCmd  `cmd:"" help:"Rewrite the objects that older releases have written. Servers do so one by one when they change."`
}

// ownerConfig says which database to migrate, or to make tenants and keys in.
type ownerConfig struct {
	DatabaseURL string `help:"Postgres, as the owner of the database, not the server's login." env:"HOLDFAST_MIGRATE_DATABASE_URL,HOLDFAST_DATABASE_URL,DATABASE_URL" placeholder:"URL"`
}

func (c ownerConfig) check() error {
	if c.DatabaseURL == "" {
		return wrongUsage("no database: set HOLDFAST_MIGRATE_DATABASE_URL or DATABASE_URL to the URL of its owner, or give --database-url")
	}
	return nil
}

// operator opens the database for what the server's login may not do.
func (c ownerConfig) operator(ctx context.Context) (*db.Operator, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return db.OpenOperator(ctx, c.DatabaseURL)
}

type migrateUpCmd struct {
	ownerConfig

	Login string `help:"Also make this login, for the server, with just the rights that it needs and the password in HOLDFAST_LOGIN_PASSWORD; or grant them to one that needs no password." env:"HOLDFAST_LOGIN" placeholder:"NAME"`
}

// loginPassword is a variable and no flag: flags are seen by all in the list of processes.
const loginPassword = "HOLDFAST_LOGIN_PASSWORD" //nolint:gosec // the name of the variable

// Run migrates, then makes the login.
func (c *migrateUpCmd) Run(ctx context.Context, w *console) error {
	if err := c.check(); err != nil {
		return err
	}
	password, err := w.env.read(loginPassword)
	if err != nil {
		return err
	}
	if err := db.MigrateUp(ctx, c.DatabaseURL); err != nil {
		return err
	}
	fmt.Fprintln(w.stdout, "the schema is up to date")
	if c.Login == "" {
		return nil
	}
	if err := db.EnsureLogin(ctx, c.DatabaseURL, c.Login, password); err != nil {
		return err
	}
	and := " and its password"
	if password == "" {
		and = ""
	}
	fmt.Fprintf(w.stdout, "the login %s has its rights%s\n", c.Login, and)
	return nil
}

type migrateDownCmd struct{ ownerConfig }

// Run undoes one migration.
func (c *migrateDownCmd) Run(ctx context.Context, w *console) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := db.MigrateDown(ctx, c.DatabaseURL); err != nil {
		return err
	}
	fmt.Fprintln(w.stdout, "the newest migration is undone")
	return nil
}

type migrateStatusCmd struct{ ownerConfig }

// Run lists the migrations.
func (c *migrateStatusCmd) Run(ctx context.Context, w *console) error {
	if err := c.check(); err != nil {
		return err
	}
	all, err := db.Migrations(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
	for _, m := range all {
		state := "pending"
		if m.Applied {
			state = "applied"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\n", m.Version, state, m.Name)
	}
	return t.Flush()
}
