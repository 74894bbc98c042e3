package db

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// JobsSchema has the tables of the job queue.
const JobsSchema = "holdfast_jobs"

// JobsPool is the pool for the job queue's statements on JobsSchema, the one thing that the login may do outside a scope:
// the queue knows no scopes, and switching a connection's role for good would break behind a transaction pooler.
func (d *DB) JobsPool() *pgxpool.Pool { return d.pool }

// migrateJobs brings the job queue's tables up to date. Two at once wait for each other.
func migrateJobs(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return fmt.Errorf("the database URL is not valid: %w", err)
	}
	defer pool.Close()
	migrator, err := jobsMigrator(pool)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Only the lock is this transaction's: River runs each of its steps in one of its own.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('holdfast jobs'))"); err != nil {
			return translate(err, false)
		}
		if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
		return nil
	})
}

// jobsVersion is that of the newest of the queue's migrations.
func jobsVersion() (int, error) {
	migrator, err := jobsMigrator(nil)
	if err != nil {
		return 0, err
	}
	all := migrator.AllVersions()
	return all[len(all)-1].Version, nil
}

func jobsMigrator(pool *pgxpool.Pool) (*rivermigrate.Migrator[pgx.Tx], error) {
	return rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{
		Schema: JobsSchema, Logger: slog.New(slog.DiscardHandler),
	})
}
