package db

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // goose speaks database/sql
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration is one step of the schema and whether a database has it.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

// MigrateUp brings the schema up to date, and that of the job queue. url is the owner's, not the server's. Two at once
// wait for each other.
func MigrateUp(ctx context.Context, url string) error {
	err := withMigrator(url, func(p *goose.Provider) error {
		_, err := p.Up(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return migrateJobs(ctx, url)
}

// MigrateDown undoes the newest migration; the data that it holds is lost.
func MigrateDown(ctx context.Context, url string) error {
	return withMigrator(url, func(p *goose.Provider) error {
		_, err := p.Down(ctx)
		return err
	})
}

// Migrations lists the migrations in order.
func Migrations(ctx context.Context, url string) ([]Migration, error) {
	var out []Migration
	err := withMigrator(url, func(p *goose.Provider) error {
		all, err := p.Status(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			out = append(out, Migration{Version: s.Source.Version, Name: s.Source.Path, Applied: s.State == goose.StateApplied})
		}
		return nil
	})
	return out, err
}

// MigrationsHash identifies the schema: equal hashes mean equal schemas.
func MigrationsHash() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(migrations, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(migrations, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	if err != nil {
		return "", err
	}
	jobs, err := jobsVersion()
	fmt.Fprint(h, jobs)
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

func withMigrator(url string, do func(*goose.Provider) error) error {
	conn, err := sql.Open("pgx", url)
	if err != nil {
		return fmt.Errorf("the database URL is not valid: %w", err)
	}
	defer conn.Close()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // looks every second, for 5 min
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker),
		goose.WithTableName("public.holdfast_migrations"))
	if err != nil {
		return err
	}
	if err := do(p); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// EnsureLogin makes the server's login if it is not there, with just the rights that it needs, and sets its password.
// url is that of a role that may create roles. Roles belong to the cluster: several databases share them.
func EnsureLogin(ctx context.Context, url, login, password string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return translate(err, false)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	role := pgx.Identifier{login}.Sanitize()
	// A password cannot be a parameter of CREATE ROLE, so format() quotes it.
	var alter string
	if err := conn.QueryRow(ctx, "SELECT format('ALTER ROLE %s LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS PASSWORD %L', $1::text, $2::text)",
		role, password).Scan(&alter); err != nil {
		return translate(err, false)
	}
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::integer").Scan(&version); err != nil {
		return translate(err, false)
	}
	create := "DO $$ BEGIN CREATE ROLE " + role + "; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
	statements := []string{
		create,
		// Two databases of a cluster that are set up at once change the same rows of the catalogue, which Postgres
		// answers with "tuple concurrently updated".
		"SELECT pg_advisory_lock(hashtext('holdfast login'))",
		alter,
	}
	// Logins of earlier releases had the operator's rights, too.
	statements = append(statements, "REVOKE "+string(RoleOperator)+" FROM "+role)
	for _, q := range append(statements, loginGrants(role, version)...) {
		if _, err := conn.Exec(ctx, q); err != nil {
			return translate(err, false)
		}
	}
	return nil
}

// loginRoles are the roles that the server's login enters.
func loginRoles() []string {
	return []string{string(RoleApp), string(RoleAuth), string(RoleJanitor), string(RoleVerify)}
}

// loginGrants is what a login needs to be the server's: the roles, none of them inherited, and the job queue's tables.
func loginGrants(login string, version int) []string {
	roles := "GRANT " + strings.Join(loginRoles(), ", ") + " TO " + login
	if version >= grantsInherit {
		roles += " WITH INHERIT FALSE, SET TRUE"
	}
	return []string{
		roles,
		"GRANT USAGE ON SCHEMA holdfast, " + JobsSchema + " TO " + login,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA " + JobsSchema + " TO " + login,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA " + JobsSchema + " TO " + login,
	}
}
