package db

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Callers distinguish these failures of Postgres. SQLSTATEs and constraint names do not leave this file.
var (
	// ErrFenced means that an object was no longer at the version that the change was computed from. Nothing was stored.
	ErrFenced = errors.New("db: object is at another version")
	// ErrRequestKnown means that the object's journal already has the change's request id. Nothing was stored.
	ErrRequestKnown = errors.New("db: request id is known")
	// ErrContention means that others held the transaction's locks for too long, or that Postgres ended it to resolve a
	// deadlock. Nothing was stored; a retry may succeed.
	ErrContention = errors.New("db: others hold what the transaction needs")
	// ErrInterrupted means that Postgres ended the transaction because this process was silent for too long in the middle of it: it was
	// frozen, or got no processor. Nothing was stored; a retry may succeed. It is an ErrUnavailable.
	ErrInterrupted = fmt.Errorf("%w: this process was silent in a transaction", ErrUnavailable)
	// ErrForbidden means that row-level security refused a row. Nothing was stored.
	ErrForbidden = errors.New("db: refused by row-level security")
	// ErrNoRight means that the login, or the role that it had entered, lacks a right: the database is set up wrongly.
	ErrNoRight = errors.New("db: permission denied")
	// ErrInvalidData means that Postgres cannot store the value, such as JSON nested too deeply for its stack.
	ErrInvalidData = errors.New("db: value cannot be stored")
	// ErrUnavailable means that Postgres cannot be reached or has no room. Nothing was stored; a later retry may succeed.
	ErrUnavailable = errors.New("db: postgres is unavailable")
	// ErrOutcomeUnknown means that the connection was lost during a commit, which may or may not have happened.
	ErrOutcomeUnknown = errors.New("db: the outcome of the commit is unknown")
)

// Violations of these constraints have errors of their own.
const (
	entriesKey = "entries_pkey"
	requestKey = "events_request_key"
)

// rowSecurity is the C function in Postgres that refuses a row. Missing rights have the same SQLSTATE, and the message depends
// on the server's language.
const rowSecurity = "ExecWithCheckOptions"

// translate wraps a statement's error in one of the errors above, if one fits. commits says that the failed round trip included
// the commit, so that a lost connection leaves the outcome unknown.
func translate(err error, commits bool) error {
	if err == nil {
		return nil
	}
	if row, ok := errors.AsType[*rowError](err); ok {
		return row.err
	}
	kind := classify(err, commits)
	if kind == nil {
		return fmt.Errorf("db: %w", err)
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// roleChanged reports whether a statement on a role failed because another session changed that role at the same time.
func roleChanged(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// duplicate_object, unique_violation, and internal_error for "tuple concurrently updated".
	return ok && (pg.Code == "42710" || pg.Code == "23505" || pg.Code == "XX000")
}

// rowError carries an error with which the caller refused a row; it is not Postgres's.
type rowError struct{ err error }

func (e *rowError) Error() string { return e.err.Error() }

func classify(err error, commits bool) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch class := pg.Code[:min(2, len(pg.Code))]; {
		case pg.Code == "HF001", pg.Code == "23505" && pg.ConstraintName == entriesKey:
			return ErrFenced // not at the expected version, or an entry exists that was expected to be new
		case pg.Code == "23505" && pg.ConstraintName == requestKey:
			return ErrRequestKnown
		case pg.Code == "42501" && pg.Routine == rowSecurity:
			return ErrForbidden
		case pg.Code == "42501":
			return ErrNoRight
		case class == "22", class == "54":
			return ErrInvalidData
		case strings.HasPrefix(pg.Code, "57P") && commits, pg.Code == "40003" && commits:
			// The server was shutting down; the commit may have come before.
			return ErrOutcomeUnknown
		case class == "40", pg.Code == "55P03":
			return ErrContention
		case class == "08", class == "53", class == "55", class == "57", class == "58", pg.Code == "25006":
			return ErrUnavailable
		case pg.Code == "25P03":
			return ErrInterrupted
		}
		return nil
	}
	if pgconn.SafeToRetry(err) {
		return ErrUnavailable
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if commits {
			return ErrOutcomeUnknown
		}
		return nil
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || !commits {
		return ErrUnavailable
	}
	return ErrOutcomeUnknown
}
