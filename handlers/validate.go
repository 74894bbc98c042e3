package handlers

import (
	"errors"
	"fmt"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// errUnchecked means that a check failed to run, which is no fault of the message's sender.
var errUnchecked = errors.New("handlers: a check failed")

// validator refuses messages that could not be read or that Postgres cannot store, then those that break the rules of their protos.
type validator struct{ rules protovalidate.Validator }

// Validate implements [protovalidate.Validator].
func (v validator) Validate(m proto.Message, options ...protovalidate.ValidationOption) error {
	if err := checkReadable(m); err != nil {
		return err
	}
	if err := checkStorable(m); err != nil {
		return err
	}
	err := v.rules.Validate(m, options...)
	if _, broken := errors.AsType[*protovalidate.ValidationError](err); err != nil && !broken {
		return fmt.Errorf("%w: %w", errUnchecked, err)
	}
	return err
}
