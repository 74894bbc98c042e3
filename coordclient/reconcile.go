package coordclient

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// Reconciler finds out about calls whose provider can be asked what they did. It is safe for concurrent use.
type Reconciler struct {
	Coordinator *Client
	// API is the coordinator's name of the provider.
	API string
	// Look asks the provider what a call did. It returns the answer that the call would have had, as JSON, or nil where it did
	// nothing, or nothing that can be seen yet. After an error the call stays unknown.
	Look func(ctx context.Context, call *coordinationv1.Call) (answer any, err error)
	// Settle is how long after it was sent the effect of a call may yet appear. A younger call that did nothing stays unknown.
	// Default: 2 min.
	Settle time.Duration
}

// Reconcile finds out about one call; it is for Options.
func (r *Reconciler) Reconcile(ctx context.Context, call *coordinationv1.Call) error {
	return r.Coordinator.Reconcile(ctx, r.API, call, r.look)
}

// All finds out about all unknown calls of an operation; empty: of the API. It goes on after an error, and returns how many are not
// unknown any more.
func (r *Reconciler) All(ctx context.Context, operation string) (settled int, err error) {
	unknown, err := r.Coordinator.Unknown(ctx, r.API, operation)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, call := range unknown {
		if err := r.Reconcile(ctx, call); err != nil {
			errs = append(errs, err)
			continue
		}
		settled++
	}
	return settled, errors.Join(errs...)
}

func (r *Reconciler) look(ctx context.Context, call *coordinationv1.Call, now time.Time) (Finding, error) {
	answer, err := r.Look(ctx, call)
	if err != nil {
		return Finding{}, err
	}
	if answer != nil {
		return found(answer)
	}
	settle := r.Settle
	if settle == 0 {
		settle = 2 * time.Minute
	}
	if now.Before(call.GetBeginTime().AsTime().Add(settle)) {
		return Finding{Why: "the provider does not show it yet"}, nil
	}
	return Finding{DidNotHappen: true, Why: "the provider does not show it"}, nil
}

func found(answer any) (Finding, error) {
	body, err := json.Marshal(answer)
	if err != nil {
		return Finding{}, err
	}
	o := &coordinationv1.Outcome{HttpStatus: http.StatusOK, Body: body, Headers: map[string]string{"Content-Type": "application/json"}}
	if len(body) > maxKept {
		o.Body, o.Truncated = nil, true
	}
	return Finding{Outcome: o}, nil
}
