package load

import (
	"context"
	"errors"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
)

// Limiter is one client of one API's limits, one request at a time. It is not safe for concurrent use.
type Limiter struct {
	// Granted is how many of its requests were allowed.
	Granted int64

	caller  *caller
	codec   Codec
	api     string
	acquire *coordinationv1.AcquireRequest
}

// NewLimiter returns a client of an API's limits.
func NewLimiter(t *Target, token, api string) *Limiter {
	return &Limiter{caller: t.caller(token), codec: t.Codec, api: api, acquire: &coordinationv1.AcquireRequest{Api: api, Operation: "bench", Cost: 10}}
}

// Close closes the client's connection.
func (l *Limiter) Close() { l.caller.close() }

// Configure gives the API its policies.
func (l *Limiter) Configure(ctx context.Context, c *coordinationv1.ApiConfig) error {
	_, err := l.caller.call(ctx, coordinationv1connect.CoordinationServiceUpdateApiProcedure,
		&coordinationv1.UpdateApiRequest{Api: l.api, Config: c})
	return err
}

// Acquire acquires once, and fails where it is not allowed.
func (l *Limiter) Acquire(ctx context.Context) error {
	body, err := l.caller.call(ctx, coordinationv1connect.CoordinationServiceAcquireProcedure, l.acquire)
	if err != nil {
		return err
	}
	var res coordinationv1.AcquireResponse
	if err := l.codec.decode(body, &res); err != nil {
		return err
	}
	if !res.GetAllowed() {
		return errors.New("refused, though the limits are far away")
	}
	l.Granted++
	return nil
}

// Counted is how many permits the server says that it has granted.
func (l *Limiter) Counted(ctx context.Context) (permits int64, err error) {
	body, err := l.caller.call(ctx, coordinationv1connect.CoordinationServiceGetApiProcedure,
		&coordinationv1.GetApiRequest{Api: l.api, UsageDays: 30})
	if err != nil {
		return 0, err
	}
	var res coordinationv1.GetApiResponse
	if err := l.codec.decode(body, &res); err != nil {
		return 0, err
	}
	for _, d := range res.GetUsage() {
		permits += d.GetPermits()
	}
	return permits, nil
}
