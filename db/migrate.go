package db

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// schema holds the migrations, each with a .down.sql that undoes it, and the functions.
//
//go:embed schema
var schema embed.FS

// Migration is one step of the schema and whether a database has it.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

// MigrateUp brings the schema and the job queue's up to date, and lets the owner make tenants and keys. url is the owner's, not the
// server's. What is new in the tables and all functions come in one transaction. Two at once wait for each other.
func MigrateUp(ctx context.Context, url string) error {
	err := inSchema(ctx, url, func(tx pgx.Tx, all []Migration) error {
		if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS public.holdfast_schema (
			version bigint PRIMARY KEY, name text NOT NULL, apply_time timestamptz NOT NULL DEFAULT clock_timestamp())`); err != nil {
			return err
		}
		for _, m := range all {
			if m.Applied {
				continue
			}
			if err := execFile(ctx, tx, "schema/"+m.Name); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO public.holdfast_schema (version, name) VALUES ($1, $2)", m.Version, m.Name); err != nil {
				return err
			}
		}
		return createFunctions(ctx, tx)
	})
	if err != nil {
		return err
	}
	if err := migrateJobs(ctx, url); err != nil {
		return err
	}
	return changeRoles(ctx, url, letOwnerOperate)
}

// MigrateDown undoes the newest migration; the data that it holds is lost.
func MigrateDown(ctx context.Context, url string) error {
	return inSchema(ctx, url, func(tx pgx.Tx, all []Migration) error {
		for len(all) > 0 && !all[len(all)-1].Applied {
			all = all[:len(all)-1]
		}
		if len(all) == 0 {
			return errors.New("there is no migration to undo")
		}
		m := all[len(all)-1]
		if err := execFile(ctx, tx, "schema/"+strings.TrimSuffix(m.Name, ".sql")+".down.sql"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "DELETE FROM public.holdfast_schema WHERE version = $1", m.Version)
		return err
	})
}

// Migrations lists the migrations in order.
func Migrations(ctx context.Context, url string) ([]Migration, error) {
	var out []Migration
	err := inSchema(ctx, url, func(_ pgx.Tx, all []Migration) error {
		out = all
		return nil
	})
	return out, err
}

// MigrationsHash identifies the schema: equal hashes mean equal schemas.
func MigrationsHash() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(schema, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := fs.ReadFile(schema, path)
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

// inSchema runs do in a transaction that nobody else changes the schema beside, with the migrations and which of them are applied.
func inSchema(ctx context.Context, url string, do func(pgx.Tx, []Migration) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("migrate: %w", translate(err, false))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('holdfast schema'))"); err != nil {
			return err
		}
		all, err := migrations(ctx, tx)
		if err != nil {
			return err
		}
		return do(tx, all)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(translate(err, false), ErrNoRight):
		return fmt.Errorf("migrate: this login may not change the schema; give the URL of the database's owner: %w", err)
	}
	return fmt.Errorf("migrate: %w", err)
}

func migrations(ctx context.Context, tx pgx.Tx) ([]Migration, error) {
	files, err := fs.Glob(schema, "schema/*.sql") // in order
	if err != nil {
		return nil, err
	}
	var all []Migration
	for _, file := range files {
		name := path.Base(file)
		if strings.HasSuffix(name, ".down.sql") {
			continue
		}
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the migration %s has no number: %w", name, err)
		}
		all = append(all, Migration{Version: version, Name: name})
	}
	var known, made bool
	err = tx.QueryRow(ctx, "SELECT to_regclass('public.holdfast_schema') IS NOT NULL, to_regnamespace('holdfast') IS NOT NULL").Scan(&known, &made)
	if err != nil {
		return nil, err
	}
	switch {
	case made && !known:
		return nil, errors.New("the database has a schema from before the first release, which cannot be brought up to date; use a new database (holdfast dev: --ephemeral, or another --data)")
	case !known:
		return all, nil
	}
	rows, err := tx.Query(ctx, "SELECT version FROM public.holdfast_schema")
	if err != nil {
		return nil, err
	}
	applied, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	for _, version := range applied {
		i := slices.IndexFunc(all, func(m Migration) bool { return m.Version == version })
		if i < 0 {
			return nil, fmt.Errorf("the database has migration %d of a newer release; run that release", version)
		}
		all[i].Applied = true
	}
	return all, nil
}

// createFunctions drops all functions and creates those of the files. Statements that servers have prepared go on: Postgres plans them
// again, and finds the new functions by name.
func createFunctions(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `DO $$
		DECLARE
		  f regprocedure;
		BEGIN
		  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace LOOP
		    EXECUTE 'DROP FUNCTION ' || f;
		  END LOOP;
		END $$`)
	if err != nil {
		return err
	}
	files, err := fs.Glob(schema, "schema/functions/*.sql")
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := execFile(ctx, tx, file); err != nil {
			return err
		}
	}
	return nil
}

// execFile runs a file's statements.
func execFile(ctx context.Context, tx pgx.Tx, file string) error {
	statements, err := fs.ReadFile(schema, file)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, string(statements)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// EnsureLogin creates the server's login if it does not exist, sets its password, and grants it just the rights that it
// needs. Without a password the login must exist, as one whose identity the database's host verifies. url is that of the database's
// owner, who may create roles and need be no superuser. Roles belong to the cluster: several databases share them.
func EnsureLogin(ctx context.Context, url, login, password string) error {
	return changeRoles(ctx, url, func(ctx context.Context, tx pgx.Tx) error { return ensureLogin(ctx, tx, login, password) })
}

// changeRoles runs do in a transaction. Advisory locks end at the database, so two databases of a cluster may change the same
// role at once: then it runs again, on what the other one left.
func changeRoles(ctx context.Context, url string, do func(context.Context, pgx.Tx) error) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return translate(err, false)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return do(ctx, tx) })
		if attempt == 10 || !roleChanged(err) {
			return err
		}
	}
}

// letOwnerOperate lets the database's owner enter holdfast_operator, which makes tenants and keys. Making a role gives only the
// right to grant it. An owner without that right stays as they are: another one may be granted the role.
func letOwnerOperate(ctx context.Context, tx pgx.Tx) error {
	var version int
	var may, mayGrant bool
	if err := tx.QueryRow(ctx, `
		SELECT v.version, pg_has_role($1, CASE WHEN v.version >= $2 THEN 'SET' ELSE 'MEMBER' END),
			rolcreaterole AND v.version < $2 OR pg_has_role($1, 'MEMBER WITH ADMIN OPTION')
		FROM pg_catalog.pg_roles, (SELECT current_setting('server_version_num')::integer AS version) v
		WHERE rolname = current_user`, string(RoleOperator), grantsInherit).Scan(&version, &may, &mayGrant); err != nil {
		return translate(err, false)
	}
	if may || !mayGrant {
		return nil
	}
	grant := "GRANT " + string(RoleOperator) + " TO CURRENT_USER"
	if version >= grantsInherit {
		grant += " WITH INHERIT FALSE, SET TRUE"
	}
	_, err := tx.Exec(ctx, grant)
	return translate(err, false)
}

func ensureLogin(ctx context.Context, tx pgx.Tx, login, password string) error {
	// Within one database the grants on its schemas would collide as well.
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('holdfast login'))"); err != nil {
		return translate(err, false)
	}
	p, err := loginPlan(ctx, tx, login)
	if err != nil {
		return err
	}
	// A role's name and password cannot be parameters of these statements, so Postgres quotes them.
	attributes := "ALTER ROLE %I LOGIN NOINHERIT"
	if password != "" {
		attributes += " PASSWORD %L"
	} else if !p.LoginExists {
		return fmt.Errorf("there is no login %q; give its password in HOLDFAST_LOGIN_PASSWORD to create it, or create it first where it needs none", login)
	}
	// Only a superuser may so much as name these two.
	if p.LoginSuper {
		attributes += " NOSUPERUSER"
	}
	if p.LoginBypasses {
		attributes += " NOBYPASSRLS"
	}
	var alter string
	if err := tx.QueryRow(ctx, "SELECT format($1::text, $2::text, $3::text)", attributes, login, password).Scan(&alter); err != nil {
		return translate(err, false)
	}
	role := pgx.Identifier{login}.Sanitize()
	var statements []string
	if !p.LoginExists {
		statements = append(statements, "CREATE ROLE "+role)
	}
	statements = append(statements, alter)
	if p.LoginOperates { // as logins of earlier releases did
		statements = append(statements, "REVOKE "+string(RoleOperator)+" FROM "+role)
	}
	for _, q := range append(statements, loginGrants(role, p.Version)...) {
		if _, err := tx.Exec(ctx, q); err != nil {
			return translate(err, false)
		}
	}
	return nil
}

// plan is what EnsureLogin finds: the owner that runs it, and the login.
type plan struct {
	Version                                int
	Owner                                  string
	OwnerSuper, OwnerCreates               bool
	LoginExists, LoginSuper, LoginBypasses bool
	LoginOperates                          bool // was granted holdfast_operator
	// Foreign are roles that exist and that the owner may not grant or alter.
	Foreign []string
}

// loginPlan reads what there is, and returns an error that says what to do where the owner's rights do not suffice.
func loginPlan(ctx context.Context, tx pgx.Tx, login string) (plan, error) {
	var p plan
	const maxName = 63 // Postgres cuts longer names off, and the login would have another name than it was given
	if login == "" || len(login) > maxName {
		return p, fmt.Errorf("the login's name %q has %d bytes; it may have 1 to %d", login, len(login), maxName)
	}
	if slices.Contains(append(loginRoles(), string(RoleOperator)), login) || strings.HasPrefix(login, "pg_") {
		return p, fmt.Errorf("%q is the name of a role without a login; name another", login)
	}
	rows, err := tx.Query(ctx, `
		SELECT current_setting('server_version_num')::integer AS version, o.rolname::text AS owner, o.rolsuper AS owner_super,
			o.rolcreaterole AS owner_creates, l.oid IS NOT NULL AS login_exists, coalesce(l.rolsuper, false) AS login_super,
			coalesce(l.rolbypassrls, false) AS login_bypasses,
			EXISTS (SELECT FROM pg_catalog.pg_auth_members g WHERE g.member = l.oid AND g.roleid = to_regrole($3)) AS login_operates,
			ARRAY (SELECT m.rolname::text FROM pg_catalog.pg_roles m WHERE m.rolname = ANY ($2)
				AND NOT pg_has_role(o.oid, m.oid, 'MEMBER WITH ADMIN OPTION') ORDER BY 1) AS "foreign"
		FROM pg_catalog.pg_roles o LEFT JOIN pg_catalog.pg_roles l ON l.rolname = $1
		WHERE o.rolname = current_user`, login, append(loginRoles(), login), string(RoleOperator))
	if err != nil {
		return p, translate(err, false)
	}
	if p, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[plan]); err != nil {
		return p, translate(err, false)
	}
	owner, role := pgx.Identifier{p.Owner}.Sanitize(), pgx.Identifier{login}.Sanitize()
	switch {
	case login == p.Owner:
		return p, fmt.Errorf("the login %q is the one that owns the database; name another, because row-level security does not bind an owner", login)
	case p.OwnerSuper:
		return p, nil
	case p.LoginSuper || p.LoginBypasses:
		return p, fmt.Errorf("the login %q is a superuser or has BYPASSRLS, and %q may not change that; name another, or run as a superuser:\n  ALTER ROLE %s NOSUPERUSER NOBYPASSRLS;",
			login, p.Owner, role)
	case !p.OwnerCreates:
		return p, fmt.Errorf("%q may not create roles; run as a superuser:\n  ALTER ROLE %s CREATEROLE;", p.Owner, owner)
	case p.Version >= grantsInherit && len(p.Foreign) > 0: // before, CREATEROLE was enough
		return p, fmt.Errorf("another role of this cluster made %s, so %q may not grant or change them; as their maker or a superuser, run:\n  GRANT %[3]s TO %[4]s WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;",
			strings.Join(p.Foreign, ", "), p.Owner, quoteAll(p.Foreign), owner)
	}
	return p, nil
}

func quoteAll(roles []string) string {
	var out []string
	for _, r := range roles {
		out = append(out, pgx.Identifier{r}.Sanitize())
	}
	return strings.Join(out, ", ")
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
