package object

import (
	"errors"
	"fmt"

	"holdfast/object/internal/bounds"
	"holdfast/object/internal/rowjson"
)

var (
	// ErrNotFound: there is no such object, or not for this caller. The two are never told apart.
	ErrNotFound = errors.New("object: not found")
	// ErrServicesOnly: the caller may see the object, or knows of it anyway, and only a service may change it.
	ErrServicesOnly = errors.New("object: only a service may change this")
	// ErrExists: the object to create is there already. It may be another user's.
	ErrExists = errors.New("object: exists already")
	// ErrRequestReused: the request id was used for another request.
	ErrRequestReused = errors.New("object: request id was used for another request")
	// ErrNewerSchema: a newer release wrote the object. This one may read it, but a write could drop what it does not know.
	ErrNewerSchema = errors.New("object: written by a newer release")
	// ErrClosed: the runtime is shutting down.
	ErrClosed = errors.New("object: shutting down")
	// ErrWatchOver: a watch has reached its greatest age. Watch again from the last version.
	ErrWatchOver = errors.New("object: the watch is over")
	// ErrInvalid is wrapped, and explained in words for the caller, by errors about a value that the caller gave.
	ErrInvalid = rowjson.ErrInvalid
)

// VersionMismatchError: the precondition named another version than the object's. Current is 0 where there is no object.
type VersionMismatchError struct {
	Kind              string
	ID                ID
	Expected, Current Version
}

func (e *VersionMismatchError) Error() string {
	return fmt.Sprintf("object: at version %d, not %d", e.Current, e.Expected)
}

// OverloadedError: a bounded queue is full. Nothing was done; trying again after RetryAfter may help.
type OverloadedError = bounds.OverloadedError

// TooLargeError: what a change would store is over a limit.
type TooLargeError struct {
	// What is too large: "state" or "entry <collection>/<key>".
	What        string
	Size, Limit int // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("object: %s has %d bytes, over the limit of %d", e.What, e.Size, e.Limit)
}
