package db

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// What can go wrong in Postgres, as callers tell it apart. SQLSTATEs and constraint names end in this file.
var (
	// ErrFenced: an object was not at the version that the change was computed from. Nothing was stored.
	ErrFenced = errors.New("db: object is at another version")
	// ErrRequestKnown: a change carried a request id that the object's journal has. Nothing was stored.
	ErrRequestKnown = errors.New("db: request id is known")
	// ErrContention: others hold what the transaction needs for too long, or it was chosen to end a deadlock. Nothing was
	// stored; the same again may pass.
	ErrContention = errors.New("db: others hold what the transaction needs")
	// ErrForbidden: row-level security refused a row. Nothing was stored.
	ErrForbidden = errors.New("db: refused by row-level security")
	// ErrNoRight: the login, or the role that it had entered, lacks a right, which is a mistake in how the database is set up.
	ErrNoRight = errors.New("db: permission denied")
	// ErrInvalidData: Postgres cannot store the value, such as JSON nested too deep for its stack.
	ErrInvalidData = errors.New("db: value cannot be stored")
	// ErrUnavailable: Postgres is away or has no room; nothing was stored, and trying again later may help.
	ErrUnavailable = errors.New("db: postgres is unavailable")
	// ErrOutcomeUnknown: the connection was lost while a commit was on its way; it may or may not have happened.
	ErrOutcomeUnknown = errors.New("db: the outcome of the commit is unknown")
)

// Constraint names that mean something to callers.
const (
	entriesKey = "entries_pkey"
	requestKey = "events_request_key"
)

// rowSecurity is the function of Postgres that refuses a row. Missing rights have the same SQLSTATE, and the text depends on
// the server's language.
const rowSecurity = "ExecWithCheckOptions"

// translate gives an error of a statement its meaning, keeping the cause. commits tells whether the round trip that
// failed had the commit in it: a connection lost then leaves the outcome open.
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

// rowError is the caller's own, about a row that arrived: it says nothing about Postgres.
type rowError struct{ err error }

func (e *rowError) Error() string { return e.err.Error() }

func classify(err error, commits bool) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch class := pg.Code[:min(2, len(pg.Code))]; {
		case pg.Code == "HF001", pg.Code == "23505" && pg.ConstraintName == entriesKey:
			return ErrFenced // not at the expected version, or an entry is there that was taken to be new
		case pg.Code == "23505" && pg.ConstraintName == requestKey:
			return ErrRequestKnown
		case pg.Code == "42501" && pg.Routine == rowSecurity:
			return ErrForbidden
		case pg.Code == "42501":
			return ErrNoRight
		case class == "22", class == "54":
			return ErrInvalidData
		case strings.HasPrefix(pg.Code, "57P") && commits, pg.Code == "40003" && commits:
			// The server was told to stop; whether before or after our commit is not known here.
			return ErrOutcomeUnknown
		case class == "40", pg.Code == "55P03":
			return ErrContention
		case class == "08", class == "53", class == "55", class == "57", class == "58", pg.Code == "25006", pg.Code == "25P03":
			return ErrUnavailable
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
