package coordination

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// Acquire implements CoordinationService.
func (m *Manager) Acquire(ctx context.Context, req *coordinationv1.AcquireRequest) (*coordinationv1.AcquireResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case req.GetScope() == storev1.Scope_SCOPE_TENANT && !service(caller):
		return nil, problem.PermissionDenied("only a service may leave a user's own limits out")
	case req.GetScope() == storev1.Scope_SCOPE_USER && caller.User == "":
		return nil, problem.InvalidArgument("scope", "there is no user; act for one with Holdfast-User")
	}
	// Made only where a policy counts what runs at once, and the same however often the change runs.
	newID := sync.OnceValue(func() string { return uuid.Must(uuid.NewV7()).String() })
	res, err := change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.AcquireResponse, error) {
		t.loadUser(caller.User)
		d := &demand{
			operation: req.GetOperation(), permits: max(1, req.GetPermits()), cost: req.GetCost(), only: req.GetPolicies(),
			users: caller.User != "", leaseID: req.GetLeaseId(), owner: string(caller.User),
		}
		if d.leaseID == "" && d.leases(t.config) {
			d.leaseID = newID()
		}
		return t.acquire(d, req.GetPeek())
	})
	if err != nil {
		return nil, err
	}
	if !res.GetAllowed() && !req.GetPeek() {
		m.countRefusal(req.GetApi(), res.GetReason())
	}
	writeHeaders(ctx, res.GetLimits(), res.GetRetryAfter())
	return res, nil
}

func (t *tx) acquire(d *demand, peek bool) (*coordinationv1.AcquireResponse, error) {
	for _, name := range d.only {
		if !hasPolicy(t.config, name) {
			return nil, problem.InvalidArgument("policies", fmt.Sprintf("the API has no policy %q", name))
		}
	}
	if err := t.checkLeaseID(d); err != nil {
		return nil, err
	}
	breaker := t.breaker()
	v := acquire(t.bucketStore, t.config, d, peek, t.ledger.now)
	if v.tooMuch != "" {
		return nil, tooMuchError(v.tooMuch)
	}
	res := &coordinationv1.AcquireResponse{Allowed: v.allowed, Limits: v.limits}
	if least := tightest(v.limits); least != nil {
		res.Remaining, res.ResetAfter = least.GetRemaining(), least.GetResetAfter()
	}
	if !v.allowed {
		res.RetryAfter, res.Reason = durationpb.New(v.retryAt.Sub(t.ledger.now)), v.reason
		return answered(t, res)
	}
	if peek {
		return answered(t, res)
	}
	if v.leases {
		res.LeaseId, res.LeaseExpireTime = d.leaseID, stamp(v.leaseUntil)
	}
	if v.sendWithin > 0 {
		res.SendWithin = durationpb.New(v.sendWithin)
	}
	res.Probe, res.BreakerGeneration, res.GrantTime = v.probe, breaker.GetGeneration(), stamp(t.ledger.now)
	if !v.renewed {
		t.count(countPermits(d.operation, d.permits, d.cost))
	}
	t.Emit("acquired")
	return res, nil
}

// checkLeaseID refuses the id of another's lease.
func (t *tx) checkLeaseID(d *demand) error {
	for _, b := range t.state.GetPools() {
		if l := b.GetLeases()[d.leaseID]; l != nil && l.GetOwner() != d.owner && t.ledger.now.Before(l.GetExpireTime().AsTime()) {
			return &problem.Error{Reason: errorv1.Reason_REASON_ALREADY_EXISTS, Message: "another has a lease of this id; choose another id"}
		}
	}
	return nil
}

func hasPolicy(c *storev1.ApiConfig, name string) bool {
	for _, p := range c.GetPolicies() {
		if p.GetName() == name {
			return true
		}
	}
	return false
}

// Refund implements CoordinationService.
func (m *Manager) Refund(ctx context.Context, req *coordinationv1.RefundRequest) (*coordinationv1.RefundResponse, error) {
	if err := onlyServices(ctx, "refund"); err != nil {
		return nil, err
	}
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.RefundResponse, error) {
		t.loadUser(identity.User(req.GetUser()))
		d := &demand{operation: req.GetOperation(), permits: req.GetPermits(), cost: req.GetCost(), users: req.GetUser() != ""}
		limits := refund(t.bucketStore, t.config, d, req.GetGrantTime().AsTime(), t.ledger.now)
		t.Emit("refunded")
		return &coordinationv1.RefundResponse{Limits: limits}, nil
	})
}

// onlyServices refuses a user, and a service that acts for one.
func onlyServices(ctx context.Context, what string) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if !service(caller) {
		return problem.PermissionDenied("only a service may " + what)
	}
	return nil
}

// ReleaseLease implements CoordinationService.
func (m *Manager) ReleaseLease(
	ctx context.Context, req *coordinationv1.ReleaseLeaseRequest,
) (*coordinationv1.ReleaseLeaseResponse, error) {
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ReleaseLeaseResponse, error) {
		t.loadUser(t.caller.User)
		owner := string(t.caller.User)
		released := releaseLease(t.state.GetPools(), req.GetLeaseId(), owner, service(t.caller))
		released = releaseLease(t.user.GetPools(), req.GetLeaseId(), owner, service(t.caller)) || released
		res := &coordinationv1.ReleaseLeaseResponse{Released: released}
		if !released {
			return answered(t, res)
		}
		t.Emit("released")
		return res, nil
	})
}

// ReportLimits implements CoordinationService.
func (m *Manager) ReportLimits(
	ctx context.Context, req *coordinationv1.ReportLimitsRequest,
) (*coordinationv1.ReportLimitsResponse, error) {
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ReportLimitsResponse, error) {
		t.loadUser(t.caller.User)
		d := &demand{operation: req.GetOperation(), users: t.caller.User != ""}
		if req.GetOperation() == "" {
			d.only = policyNames(t.config)
		}
		o, corrected, paused := t.report(d, req.GetResponse())
		res := &coordinationv1.ReportLimitsResponse{Observed: o.list(), Ignored: o.ignored, Corrected: corrected}
		if !o.retryAt.IsZero() {
			res.RetryAfter = durationpb.New(o.retryAt.Sub(t.ledger.now))
		}
		changed := paused || len(corrected) > 0
		if req.GetCount() {
			changed = breakerHears(t.breaker(), t.config.GetBreaker(), req.GetBreakerGeneration(), healthOf(o, req.GetResponse()), t.ledger.now) || changed
		}
		for _, p := range t.config.GetPolicies() {
			if d.covers(p) {
				res.Limits = append(res.Limits, standing(p, t.bucket(p, t.ledger.now), t.ledger.now))
			}
		}
		if !changed {
			return answered(t, res)
		}
		t.Emit("reported")
		return res, nil
	})
}

// report corrects the limits by what the provider answered; nil says nothing.
func (t *tx) report(d *demand, r *coordinationv1.ProviderResponse) (o *observed, corrected []string, paused bool) {
	o = observe(r, t.ledger.now)
	corrected, paused = correct(t.bucketStore, t.config, d, o, service(t.caller), t.ledger.now)
	return o, corrected, paused
}

func policyNames(c *storev1.ApiConfig) []string {
	names := make([]string, len(c.GetPolicies()))
	for i, p := range c.GetPolicies() {
		names[i] = p.GetName()
	}
	return names
}

// healthOf is what an answer says about whether the API is up.
func healthOf(o *observed, r *coordinationv1.ProviderResponse) health {
	switch status := r.GetHttpStatus(); {
	case o.refused:
		return healthNone
	case status == 0 || status >= 500:
		return healthDown
	default:
		return healthUp
	}
}
