package coordination

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/coordination/dialect"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// Acquire implements CoordinationService.
func (m *Manager) Acquire(ctx context.Context, req *coordinationv1.AcquireRequest) (*coordinationv1.AcquireResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case req.GetScope() == coordinationv1.Scope_SCOPE_TENANT && !service(caller):
		return nil, problem.PermissionDenied("only a service may leave a user's own limits out")
	case req.GetScope() == coordinationv1.Scope_SCOPE_USER && caller.User == "":
		return nil, problem.InvalidArgument("scope", "there is no user; act for one with Holdfast-User")
	}
	res, err := change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.AcquireResponse, error) {
		t.loadUser(caller.User)
		return t.acquire(&demand{
			operation: req.GetOperation(), permits: max(1, req.GetPermits()), cost: req.GetCost(), only: req.GetPolicies(),
			users: caller.User != "", leaseID: req.GetGrantId(), owner: string(caller.User), version: t.made(), userKey: t.key,
		}, req.GetPeek())
	}, prefetchGrant(caller, req.GetGrantId())...)
	if err != nil {
		return nil, err
	}
	if !res.GetAllowed() && !req.GetPeek() {
		m.countRefusal(req.GetApi(), res.GetWaitReason())
	}
	writeHeaders(ctx, res.GetLimits(), res.GetRetryAfter())
	return res, nil
}

// acquire takes what a call demands. Its leaseID is the name that the caller gave to the grant, if any.
func (t *tx) acquire(d *demand, peek bool) (*coordinationv1.AcquireResponse, error) {
	for _, name := range d.only {
		if !hasPolicy(t.config, name) {
			return nil, problem.InvalidArgument("policies", fmt.Sprintf("the API has no policy %q", name))
		}
	}
	name := d.leaseID
	if name != "" {
		if err := t.checkLeaseID(name); err != nil {
			return nil, err
		}
		switch res, err := t.repeated(d, name, peek); {
		case err != nil:
			return nil, err
		case res != nil:
			return res, errAnswered
		}
		if _, servers := parseGrant(name); servers {
			if name = ""; !t.runs(d) {
				d.leaseID = "" // that grant is over: this is another one
			}
		}
	}
	v := acquire(t.bucketStore, t.config, d, peek, t.ledger.now)
	if v.tooMuch != "" {
		return nil, tooMuchError(v.tooMuch)
	}
	res := &coordinationv1.AcquireResponse{Allowed: v.allowed, Limits: v.limits, Version: t.at()}
	if !v.allowed {
		res.RetryAfter, res.WaitReason = durationpb.New(v.retryAt.Sub(t.ledger.now)), v.reason
		return res, errAnswered
	}
	if peek {
		return res, errAnswered
	}
	if v.leases {
		res.Lease = &typev1.Lease{ExpireTime: stamp(v.leaseUntil), ExpiresIn: durationpb.New(v.leaseUntil.Sub(t.ledger.now))}
	}
	if v.sendWithin > 0 {
		res.SendWithin = durationpb.New(v.sendWithin)
	}
	res.GrantId, res.Probe, res.Version = d.leaseID, v.probe, t.made()
	if !v.renewed {
		t.count(countPermits(d.operation, d.permits, d.cost))
		t.countUser(d.owner, d.permits, d.cost)
		if name != "" {
			t.keep(name, v.grant)
		}
	}
	t.Emit("acquired")
	return res, nil
}

// repeated is the answer where the grant of that name is there and nothing is taken again; nil where it is not, or has a lease,
// which is renewed.
func (t *tx) repeated(d *demand, name string, peek bool) (*coordinationv1.AcquireResponse, error) {
	if _, servers := parseGrant(name); servers || peek {
		return nil, nil
	}
	g, ok := t.named(name)
	policies, same := t.covered(g)
	switch {
	case !ok || !same || d.leases(t.config):
		return nil, nil
	case g.permits != d.permits || g.cost != d.cost:
		return nil, errGrantUsed
	}
	res := &coordinationv1.AcquireResponse{Allowed: true, GrantId: name, Limits: t.standings(policies), Version: t.at()}
	if within := sendWithin(t.config, d); within > 0 {
		left := g.at.Add(within).Sub(t.ledger.now)
		if left <= 0 {
			return nil, nil // it must not be used any more: another one may be had
		}
		res.SendWithin = durationpb.New(left)
	}
	return res, nil
}

// checkLeaseID refuses the id of another's lease.
func (t *tx) checkLeaseID(id string) error {
	for _, b := range t.state.GetPools() {
		if l := b.GetLeases()[id]; l != nil && l.GetOwner() != string(t.caller.User) && t.ledger.now.Before(l.GetExpireTime().AsTime()) {
			return &problem.Error{Reason: errorv1.Reason_REASON_ALREADY_EXISTS, Message: "another has a grant of this id; choose another id"}
		}
	}
	return nil
}

// runs reports whether the lease that a call names is there.
func (t *tx) runs(d *demand) bool {
	for _, p := range t.config.GetPolicies() {
		if countsAtOnce(p) && d.covers(p) && t.bucket(p, t.ledger.now).GetLeases()[d.leaseID] != nil {
			return true
		}
	}
	return false
}

func hasPolicy(c *storev1.ApiConfig, name string) bool {
	for _, p := range c.GetPolicies() {
		if p.GetName() == name {
			return true
		}
	}
	return false
}

// standings are how policies stand by now.
func (t *tx) standings(policies []policy) (all []*coordinationv1.Standing) {
	for _, p := range policies {
		all = append(all, standing(p, t.bucket(p, t.ledger.now), t.ledger.now))
	}
	return all
}

// prefetchGrant has the grants at hand among which one that the caller has named is.
func prefetchGrant(caller identity.Identity, name string) []object.UpdateOption {
	if _, servers := parseGrant(name); servers || name == "" {
		return nil
	}
	return []object.UpdateOption{object.Prefetch(inGrants, groupKey(ownerKey(caller.User), name))}
}

// Release implements CoordinationService.
func (m *Manager) Release(ctx context.Context, req *coordinationv1.ReleaseRequest) (*coordinationv1.ReleaseResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetUnused() && !service(caller) {
		return nil, problem.PermissionDenied("only a service may give back what was taken; leave unused out to end a lease")
	}
	return change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.ReleaseResponse, error) {
		t.loadUser(caller.User)
		g, known := t.grant(req.GetGrantId())
		policies, _ := t.covered(g)
		leases := slices.ContainsFunc(policies, countsAtOnce)
		res := &coordinationv1.ReleaseResponse{Released: t.endLease(req.GetGrantId())}
		if known && req.GetUnused() && (!leases || res.GetReleased()) {
			res.Released = t.giveBack(g) || res.GetReleased()
		}
		if known {
			res.Limits = t.standings(policies)
		}
		if res.Version = t.at(); !res.GetReleased() {
			return res, errAnswered
		}
		if _, servers := parseGrant(req.GetGrantId()); known && !servers {
			t.forgetGrant(req.GetGrantId())
		}
		t.Emit("released")
		res.Version = t.made()
		return res, nil
	}, prefetchGrant(caller, req.GetGrantId())...)
}

// grant finds a grant that the caller may know of, and has the buckets of its user at hand.
func (t *tx) grant(id string) (g grant, ok bool) {
	g, ok = t.named(id)
	switch {
	case !ok || g.user == "":
		return g, ok
	case service(t.caller):
		t.loadKey(g.user)
		return g, true
	}
	return g, g.user == t.callerKey()
}

// endLease ends what runs under an id, of whatever policy.
func (t *tx) endLease(id string) bool {
	released := releaseLease(t.state.GetPools(), id, string(t.caller.User), service(t.caller))
	return releaseLease(t.user.GetPools(), id, string(t.caller.User), service(t.caller)) || released
}

// Report implements CoordinationService.
func (m *Manager) Report(ctx context.Context, req *coordinationv1.ReportRequest) (*coordinationv1.ReportResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetSync() != nil {
		if err := rpc.RequireService(ctx, "report a sync"); err != nil {
			return nil, err
		}
	}
	var took *time.Duration // of a call that had a grant
	res, err := change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ReportResponse, error) {
		took = nil
		res := &coordinationv1.ReportResponse{Version: t.made()}
		switch {
		case req.GetSync() != nil:
			t.Emit("synced")
			return res, reportSync(t.state, req.GetSync(), t.ledger.now)
		case req.GetLive() != nil:
			t.Emit("live")
			return res, t.reportLive(req.GetLive())
		}
		t.loadUser(caller.User)
		var changed bool
		if changed, took = t.reportResponse(req, res); changed {
			t.Emit("reported")
			return res, nil
		}
		res.Version = t.at()
		return res, errAnswered
	}, prefetchGrant(caller, req.GetGrantId())...)
	if err == nil && took != nil {
		m.tallies.count(tallyKey{caller.Tenant, req.GetApi()}, byAnswer(req.GetResponse().GetHttpStatus(), *took))
	}
	return res, err
}

// reportResponse corrects the limits by what the provider answered. It reports whether that has changed anything, and how long the
// call took; nil: nobody knows.
func (t *tx) reportResponse(req *coordinationv1.ReportRequest, res *coordinationv1.ReportResponse) (changed bool, took *time.Duration) {
	g, counts := t.grant(req.GetGrantId())
	d := &demand{users: t.caller.User != "" || g.user != "", only: namesOf(t.config.GetPolicies())}
	if policies, same := t.covered(g); counts && same && len(policies) > 0 {
		d.only = namesOf(policies)
	}
	var sent time.Time
	if counts {
		sent = g.at
	}
	o := observe(req.GetResponse(), sent, t.ledger.now)
	corrected, paused := correct(t.bucketStore, t.config, d, o, service(t.caller), sent, t.ledger.now)
	changed = paused || len(corrected) > 0
	res.Observed, res.Ignored, res.Corrected = observedLimits(o), o.Ignored, corrected
	switch until := t.state.GetPauseUntil().AsTime(); {
	case !o.RetryAt.IsZero():
		res.RetryAfter = durationpb.New(max(0, o.RetryAt.Sub(t.ledger.now)))
	case o.Refused && until.After(t.ledger.now):
		res.RetryAfter = durationpb.New(until.Sub(t.ledger.now))
	}
	h := healthOf(o, req.GetResponse())
	if h == healthUp {
		changed = succeeded(t.state, sent, t.ledger.now) || changed
	}
	if counts {
		lasted := max(0, t.ledger.now.Add(-req.GetResponse().GetAge().AsDuration()).Sub(g.at))
		took = &lasted
		h = slow(h, t.config.GetBreaker(), lasted)
		changed = breakerHears(t.breakerOfGrant(g), t.config.GetBreaker(), g.generation, h, t.ledger.now) || changed
	}
	return changed, took
}

func namesOf(policies []policy) []string {
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.GetName()
	}
	return names
}

// healthOf is what an answer says about whether the API is up.
func healthOf(o *dialect.Reading, r *coordinationv1.ProviderResponse) health {
	switch status := r.GetHttpStatus(); {
	case o.Refused && status != http.StatusServiceUnavailable:
		return healthNone
	case status == 0 || status >= 500:
		return healthDown
	default:
		return healthUp
	}
}
