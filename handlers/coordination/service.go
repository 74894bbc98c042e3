// Package coordination is the APICoordinator: it stands between a tenant and the APIs that it calls. The ledger sees to
// it that no request is sent twice (ledger.go), the limits that no more is sent than the provider allows (limit.go,
// acquire.go), the breaker that nothing is sent to what is down (breaker.go), and reports that all of it is as the
// provider sees it (observe.go). An API is one object, so a decision about a request, its limits and the breaker is one
// change, the same for all processes.
package coordination

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// state is what an API stores.
type state = *coordinationv1.ApiState

// The collections of an API.
const (
	inRequests    = "requests"     // key: the seq
	inRequestIDs  = "request_ids"  // key: the owner's key and the request id
	inUserBuckets = "user_buckets" // key: the owner's key
	inUsageDays   = "usage_days"   // key: the date
)

// recentRequests stay decoded in the cache of each API in use: what is in flight, as a rule.
const recentRequests = 32

// Register makes the kind "api" known to the runtime.
func Register(rt *object.Runtime) *object.Kind[state] {
	return object.Register(rt, object.KindConfig[state]{
		Name: "api", SchemaVersion: 1, Users: object.UsersShare, OnTimer: onTimer, Scratch: scratch,
		// What was sent since would be sent again.
		NoRestore: true, NewLife: newLife,
		Collections: map[string]proto.Message{
			inRequests:    &coordinationv1.ApiRequest{},
			inRequestIDs:  &coordinationv1.RequestRef{},
			inUserBuckets: &coordinationv1.UserBuckets{},
			inUsageDays:   &coordinationv1.UsageDay{},
		},
		Recent: inRequests, RecentKeep: recentRequests,
		Personal: []object.Personal{
			{Message: &coordinationv1.ApiRequest{}, User: "owner"},
			{Message: &coordinationv1.LiveSession{}, User: "owner"},
			{Message: &coordinationv1.ConcurrencyLease{}, User: "owner"},
			{Message: &coordinationv1.LiveCounts{}, User: "last_error_user"},
		},
		PersonalKeys: ownerKey,
	})
}

// newLife begins an API whose id had one before: leases of that one's requests are none of this one's.
func newLife(s state, issued int64) { s.LastSeq = issued }

// Manager serves CoordinationService. It is safe for concurrent use.
type Manager struct {
	kind    *object.Kind[state]
	now     func() time.Time
	refused *prometheus.CounterVec
}

var _ coordinationv1connect.CoordinationServiceHandler = (*Manager)(nil)

// NewManager serves the APIs of that kind. now is the clock by which what is read is shown, the database's; what is
// decided is decided by that of the change.
func NewManager(kind *object.Kind[state], now func() time.Time) *Manager {
	m := &Manager{kind: kind, now: now, refused: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_api_refused_total", Help: "Calls of APIs that were told to wait, by API and by what refused them.",
	}, []string{"api", "reason"})}
	for _, reason := range reasons {
		m.refused.WithLabelValues(otherAPI, reason) // 0 is a value, too
	}
	return m
}

// Metrics are those of the manager, to be registered once.
func (m *Manager) Metrics() prometheus.Collector { return m.refused }

// otherAPI stands in the metrics for the APIs that are not ready-made: a tenant may name any number of them.
const otherAPI = "other"

var reasons = map[coordinationv1.WaitReason]string{
	coordinationv1.WaitReason_WAIT_REASON_LIMIT:   "limit",
	coordinationv1.WaitReason_WAIT_REASON_BREAKER: "breaker",
	coordinationv1.WaitReason_WAIT_REASON_PROBE:   "probe",
	coordinationv1.WaitReason_WAIT_REASON_PAUSE:   "pause",
	coordinationv1.WaitReason_WAIT_REASON_BACKOFF: "backoff",
}

// countRefusal counts a call that has to wait. The day's usage does not: that would write for each.
func (m *Manager) countRefusal(api string, reason coordinationv1.WaitReason) {
	if readyMade(api) == nil {
		api = otherAPI
	}
	m.refused.WithLabelValues(api, reasons[reason]).Inc()
}

// tx is one change of an API, and who makes it.
type tx struct {
	*object.Tx[state]
	ledger

	api    string
	caller identity.Identity
	// key is the caller's in collections; userWas is what the buckets of the user were, where they count.
	key     string
	userWas *coordinationv1.UserBuckets
}

// errAnswered ends a change that has its answer and nothing to store. Unlike an unchanged object, it leaves no
// request id behind either: asking again asks again.
var errAnswered = errors.New("coordination: answered, nothing to store")

// asked is a request as the journal remembers it. An API is shared, so request ids count for each user apart.
type asked struct {
	proto.Message

	id string
}

func (a asked) GetRequestId() string { return a.id } //nolint:revive // as in generated code

// service tells whether the caller acts for the tenant, not for a user.
func service(i identity.Identity) bool { return i.User == "" && i.Service }

// change runs rule on an API, which it makes where a caller may. requestID is the journal's; "": none.
func change[R proto.Message](
	ctx context.Context, m *Manager, api, requestID string, req proto.Message, rule func(*tx) (R, error), opts ...object.UpdateOption,
) (R, error) {
	var answer, none R
	caller, err := identity.From(ctx)
	if err != nil {
		return none, err
	}
	if requestID != "" {
		requestID = ownerKey(caller.User) + "/" + requestID
	}
	res, err := object.Do(ctx, m.kind, object.ID(api), asked{req, requestID}, func(otx *object.Tx[state]) (R, error) {
		if !otx.Exists() && !service(caller) && readyMade(api) == nil {
			return none, object.ErrNotFound
		}
		t := newTx(otx, api, caller)
		r, err := rule(t)
		if err != nil {
			answer = r
			return r, err
		}
		t.flush()
		setMetadata(r, otx.Info())
		return r, nil
	}, append(opts, object.Upsert(), object.Shared())...)
	if errors.Is(err, errAnswered) {
		return answer, nil
	}
	if err != nil {
		return none, refuse(err)
	}
	return res, nil
}

func newTx(otx *object.Tx[state], api string, caller identity.Identity) *tx {
	t := &tx{Tx: otx, api: api, caller: caller, key: ownerKey(caller.User)}
	t.bucketStore = bucketStore{state: otx.State(), user: &coordinationv1.UserBuckets{}}
	t.config, t.ledger.now = configOf(api, t.bucketStore.state), otx.Now()
	return t
}

// answered is the end of a rule that changes nothing: its answer as it is.
func answered[R proto.Message](t *tx, r R) (R, error) {
	if t.Exists() {
		t.Unchanged()
		i := t.Info()
		if i.Version != t.Version() { // with a request id, it would be a change
			i.Version, i.UpdateTime = t.Version(), time.Time{}
		}
		setMetadata(r, i)
	}
	return r, errAnswered
}

// loadUser has the buckets of a user at hand, where some policy counts users apart.
func (t *tx) loadUser(user identity.User) {
	if user == "" || !countsUsers(t.config) {
		return
	}
	t.key = ownerKey(user)
	t.userWas, _ = t.Entry(inUserBuckets, t.key).(*coordinationv1.UserBuckets)
	if t.userWas != nil {
		t.user = proto.CloneOf(t.userWas)
	}
}

func countsUsers(c *coordinationv1.ApiConfig) bool {
	for _, p := range c.GetPolicies() {
		if scopeOf(p) == coordinationv1.Scope_SCOPE_USER {
			return true
		}
	}
	return false
}

// flush stages what the rule changed besides the state, and the timers that follow from it.
func (t *tx) flush() {
	t.setTimers()
	if t.user != nil && !proto.Equal(t.user, t.userWas) && (len(t.user.GetBuckets()) > 0 || len(t.user.GetPools()) > 0) {
		t.Put(inUserBuckets, t.key, t.user)
	}
	if t.over != nil {
		t.Put(inUsageDays, t.over.GetDate(), t.over)
	}
}

// putRow stages a row of the ledger, and the way to find it.
func (t *tx) putRow(r row) {
	t.Put(inRequests, object.SeqKey(r.GetSeq()), r)
	key := requestKey(identity.User(r.GetOwner()), r.GetRequestId())
	if ref, _ := t.Entry(inRequestIDs, key).(*coordinationv1.RequestRef); ref.GetSeq() != r.GetSeq() {
		t.Put(inRequestIDs, key, &coordinationv1.RequestRef{Seq: r.GetSeq()})
	}
}

// find is the row of a user's request, or nil.
func (t *tx) find(user identity.User, requestID string) row {
	ref, _ := t.Entry(inRequestIDs, requestKey(user, requestID)).(*coordinationv1.RequestRef)
	if ref == nil {
		return nil
	}
	r, _ := t.Entry(inRequests, object.SeqKey(ref.GetSeq())).(row)
	return r
}

// leased is the row that a lease is of, where the caller may say how it ended.
func (t *tx) leased(lease, requestID string) (r row, number int64, err error) {
	seq, number := parseLease(lease)
	r, _ = t.Entry(inRequests, object.SeqKey(seq)).(row)
	if r == nil || r.GetRequestId() != requestID || !mayTouch(t.caller, r.GetOwner()) || forgotten(r, t.config, t.ledger.now) {
		return nil, 0, errNoRequest
	}
	return r, number, nil
}

func mayTouch(caller identity.Identity, owner string) bool {
	return service(caller) || owner == string(caller.User)
}

// ownerKey is a user as a part of a key; a user's id may hold what a key may not.
func ownerKey(user identity.User) string {
	if user == "" {
		return "-"
	}
	sum := sha256.Sum256([]byte(user))
	return base32.StdEncoding.EncodeToString(sum[:15])
}

func requestKey(user identity.User, requestID string) string { return ownerKey(user) + "/" + requestID }

// BeginRequest implements CoordinationService.
func (m *Manager) BeginRequest(
	ctx context.Context, req *coordinationv1.BeginRequestRequest,
) (*coordinationv1.BeginRequestResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetUser())
	if err != nil {
		return nil, err
	}
	if owner != caller.User && !req.GetReconcile() {
		return nil, problem.InvalidArgument("user", "goes with reconcile; to send for a user, act for them with Holdfast-User")
	}
	res, err := change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.BeginRequestResponse, error) {
		t.loadUser(owner)
		b, err := t.begin(t.find(owner, req.GetRequestId()), req, string(owner))
		if err != nil {
			return nil, err
		}
		b.res.Request = shown(b.res.GetRequest())
		if b.put == nil {
			return answered(t, b.res)
		}
		t.putRow(b.put)
		t.Emit("request." + statusWord(b.put))
		return b.res, nil
	}, object.ExpectAbsent(inRequestIDs, requestKey(owner, req.GetRequestId())))
	if err != nil {
		return nil, err
	}
	if res.GetDecision() == coordinationv1.Decision_DECISION_WAIT {
		m.countRefusal(req.GetApi(), res.GetReason())
	}
	writeHeaders(ctx, res.GetLimits(), res.GetRetryAfter())
	return res, nil
}

// onBehalf is whose requests a call is about: the caller's, or for a service those of the user that it names.
func onBehalf(caller identity.Identity, user string) (identity.User, error) {
	switch {
	case user == "" || user == string(caller.User):
		return caller.User, nil
	case service(caller):
		return identity.User(user), nil
	}
	return "", problem.PermissionDenied("only a service may ask about another user's requests")
}

// CompleteRequest implements CoordinationService.
func (m *Manager) CompleteRequest(
	ctx context.Context, req *coordinationv1.CompleteRequestRequest,
) (*coordinationv1.CompleteRequestResponse, error) {
	seq, _ := parseLease(req.GetLease())
	return change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.CompleteRequestResponse, error) {
		r, lease, err := t.leased(req.GetLease(), req.GetRequestId())
		if err != nil {
			return nil, err
		}
		t.loadUser(identity.User(r.GetOwner()))
		done, err := t.complete(r, lease, req)
		if err != nil {
			return nil, err
		}
		if done == nil {
			return answered(t, &coordinationv1.CompleteRequestResponse{Request: shown(r)})
		}
		t.report(demandOfRow(r), req.GetResponse())
		t.putRow(done)
		t.Emit("request.completed")
		return &coordinationv1.CompleteRequestResponse{Request: shown(done)}, nil
	}, object.Prefetch(inRequests, object.SeqKey(seq)))
}

// FailRequest implements CoordinationService.
func (m *Manager) FailRequest(
	ctx context.Context, req *coordinationv1.FailRequestRequest,
) (*coordinationv1.FailRequestResponse, error) {
	if req.GetFailure() != coordinationv1.Failure_FAILURE_RETRYABLE && (req.GetNotSent() || req.GetRetryAfter() != nil) {
		return nil, problem.InvalidArgument("failure", "not_sent and retry_after go with FAILURE_RETRYABLE")
	}
	seq, _ := parseLease(req.GetLease())
	return change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.FailRequestResponse, error) {
		r, lease, err := t.leased(req.GetLease(), req.GetRequestId())
		if err != nil {
			return nil, err
		}
		t.loadUser(identity.User(r.GetOwner()))
		failed, err := t.fail(r, lease, req)
		if err != nil {
			return nil, err
		}
		if failed == nil {
			return answered(t, &coordinationv1.FailRequestResponse{Request: shown(r)})
		}
		t.report(demandOfRow(r), req.GetResponse())
		t.putRow(failed)
		t.Emit("request." + statusWord(failed))
		return &coordinationv1.FailRequestResponse{Request: shown(failed)}, nil
	}, object.Prefetch(inRequests, object.SeqKey(seq)))
}

// report corrects the limits by what the provider answered; nil says nothing.
func (t *tx) report(d *demand, r *coordinationv1.ProviderResponse) (o *observed, corrected []string, paused bool) {
	o = observe(r, t.ledger.now)
	corrected, paused = correct(t.bucketStore, t.config, d, o, service(t.caller), t.ledger.now)
	return o, corrected, paused
}

// GetRequest implements CoordinationService.
func (m *Manager) GetRequest(
	ctx context.Context, req *coordinationv1.GetRequestRequest,
) (*coordinationv1.GetRequestResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetUser())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if err != nil {
		return nil, err
	}
	ref, _, err := entry[*coordinationv1.RequestRef](ctx, m, id, inRequestIDs, requestKey(owner, req.GetRequestId()))
	if err != nil {
		return nil, err
	}
	var r row
	var info object.Info
	if ref != nil {
		if r, info, err = entry[row](ctx, m, id, inRequests, object.SeqKey(ref.GetSeq())); err != nil {
			return nil, err
		}
	}
	if r == nil || forgotten(r, configOf(req.GetApi(), s.State), m.now()) {
		return nil, refuse(errNoRequest)
	}
	return &coordinationv1.GetRequestResponse{Request: shown(asSeen(r, m.now())), Metadata: rpc.Metadata(info)}, nil
}

// entry reads one entry, or nil where there is none.
func entry[M proto.Message](ctx context.Context, m *Manager, id object.ID, collection, key string) (value M, _ object.Info, err error) {
	// The last entry in front of the first key behind it.
	page, err := m.kind.Entries(ctx, id, collection, object.EntriesOptions{Before: key + "\x01", PageSize: 1})
	if err != nil {
		return value, object.Info{}, err
	}
	if len(page.Entries) == 1 && page.Entries[0].Key == key {
		value, _ = page.Entries[0].Value.(M)
	}
	return value, page.Info, nil
}

// ListRequests implements CoordinationService.
func (m *Manager) ListRequests(
	ctx context.Context, req *coordinationv1.ListRequestsRequest,
) (*coordinationv1.ListRequestsResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil {
		return &coordinationv1.ListRequestsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	config, size, before := configOf(req.GetApi(), s.State), int(req.GetPageSize()), req.GetBeforeSeq()
	if size == 0 {
		size = object.DefaultPageSize
	}
	if before == 0 {
		before = math.MaxInt64
	}
	res := &coordinationv1.ListRequestsResponse{Metadata: rpc.Metadata(s.Info)}
	var room object.Room
	const scans = 5 // a filter that matches little must not read the whole ledger at once
	for range scans {
		page, err := m.kind.Entries(ctx, id, inRequests, object.EntriesOptions{Before: object.SeqKey(before), PageSize: object.MaxPageSize})
		if err != nil {
			return nil, err
		}
		for _, e := range slices.Backward(page.Entries) {
			r, _ := e.Value.(row)
			if len(res.GetRequests()) == size {
				res.NextBeforeSeq = before
				return res, nil
			}
			if mayTouch(caller, r.GetOwner()) && !forgotten(r, config, m.now()) && matches(r, req, m.now()) {
				request := withoutBody(shown(asSeen(r, m.now())))
				if !room.Fits(rpc.AnswerSize(request)) {
					res.NextBeforeSeq = before
					return res, nil
				}
				res.Requests = append(res.Requests, request)
			}
			before = r.GetSeq()
		}
		if !page.More {
			return res, nil
		}
	}
	res.NextBeforeSeq = before
	return res, nil
}

func matches(r row, req *coordinationv1.ListRequestsRequest, now time.Time) bool {
	return (req.GetStatus() == coordinationv1.RequestStatus_REQUEST_STATUS_UNSPECIFIED || asSeen(r, now).GetStatus() == req.GetStatus()) &&
		(req.GetOperation() == "" || r.GetOperation() == req.GetOperation())
}

func withoutBody(r row) row {
	if len(r.GetOutcome().GetBody()) == 0 {
		return r
	}
	r = proto.CloneOf(r)
	r.Outcome.Body, r.Outcome.Truncated = nil, true
	return r
}

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

func hasPolicy(c *coordinationv1.ApiConfig, name string) bool {
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

func policyNames(c *coordinationv1.ApiConfig) []string {
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

// ReportSync implements CoordinationService.
func (m *Manager) ReportSync(
	ctx context.Context, req *coordinationv1.ReportSyncRequest,
) (*coordinationv1.ReportSyncResponse, error) {
	if err := onlyServices(ctx, "report a sync"); err != nil {
		return nil, err
	}
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ReportSyncResponse, error) {
		s, err := reportSync(t.state, req, t.ledger.now)
		if err != nil {
			return nil, err
		}
		t.Emit("synced")
		return &coordinationv1.ReportSyncResponse{Sync: s}, nil
	})
}

// ReportLive implements CoordinationService.
func (m *Manager) ReportLive(
	ctx context.Context, req *coordinationv1.ReportLiveRequest,
) (*coordinationv1.ReportLiveResponse, error) {
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ReportLiveResponse, error) {
		if l := t.state.GetLive()[req.GetSessionId()]; l != nil && !mayTouch(t.caller, l.GetOwner()) && t.ledger.now.Before(l.GetExpireTime().AsTime()) {
			return nil, object.ErrNotFound
		}
		l, err := reportLive(t.state, req, string(t.caller.User), t.ledger.now)
		if err != nil {
			return nil, err
		}
		t.Emit("live")
		return &coordinationv1.ReportLiveResponse{Session: l, LiveSessions: liveSessions(t.state, t.ledger.now)}, nil
	})
}

// GetApiState implements CoordinationService.
func (m *Manager) GetApiState( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.GetApiStateRequest,
) (*coordinationv1.GetApiStateResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil:
		return &coordinationv1.GetApiStateResponse{State: present(req.GetApi(), &coordinationv1.ApiState{}, nil, caller, m.now())}, nil
	case err != nil:
		return nil, err
	}
	var user *coordinationv1.UserBuckets
	if caller.User != "" && countsUsers(configOf(req.GetApi(), s.State)) {
		if user, _, err = entry[*coordinationv1.UserBuckets](ctx, m, id, inUserBuckets, ownerKey(caller.User)); err != nil {
			return nil, err
		}
		if user == nil {
			user = &coordinationv1.UserBuckets{}
		}
	}
	res := &coordinationv1.GetApiStateResponse{State: present(req.GetApi(), s.State, user, caller, m.now()), Metadata: rpc.Metadata(s.Info)}
	writeHeaders(ctx, res.GetState().GetLimits(), nil)
	return res, nil
}

// ListApis implements CoordinationService.
func (m *Manager) ListApis(ctx context.Context, req *coordinationv1.ListApisRequest) (*coordinationv1.ListApisResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	apis, next, err := rpc.List(ctx, m.kind, req, object.ListOptions{Around: standingBytes}, func(s object.Snapshot[state]) *coordinationv1.Api {
		return present(string(s.ID), s.State, nil, caller, m.now())
	})
	return &coordinationv1.ListApisResponse{Apis: apis, NextPageToken: next}, err
}

// standingBytes is what an answer has of an API beside its state: how its 32 policies at most stand.
const standingBytes = 32 * 320

// GetUsage implements CoordinationService. It reads from the newest day to the oldest, as far as the answer has room.
func (m *Manager) GetUsage(ctx context.Context, req *coordinationv1.GetUsageRequest) (*coordinationv1.GetUsageResponse, error) {
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil {
		return &coordinationv1.GetUsageResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	days := int(req.GetDays())
	if days == 0 {
		days = 30
	}
	first := m.now().In(location(configOf(req.GetApi(), s.State).GetTimeZone())).AddDate(0, 0, 1-days).Format(time.DateOnly)
	res := &coordinationv1.GetUsageResponse{Metadata: rpc.Metadata(s.Info)}
	var room object.Room
	add := func(d *coordinationv1.UsageDay) (goOn bool) {
		if d.GetDate() < first {
			return false
		}
		if res.HasMore = !room.Fits(rpc.AnswerSize(d)); !res.GetHasMore() {
			res.Days = append(res.Days, d)
		}
		return !res.GetHasMore()
	}
	before := cmp.Or(req.GetBeforeDate(), beyondDates)
	if today := s.State.GetToday(); today != nil && today.GetDate() < before {
		add(today)
	}
	for more := true; more; {
		page, err := m.kind.Entries(ctx, id, inUsageDays, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize})
		if err != nil {
			return nil, err
		}
		more = page.More
		for _, e := range slices.Backward(page.Entries) {
			d, _ := e.Value.(*coordinationv1.UsageDay)
			if before = e.Key; !add(d) {
				more = false
				break
			}
		}
	}
	slices.Reverse(res.GetDays())
	return res, nil
}

// beyondDates is behind every date.
const beyondDates = "~"

// ConfigureApi implements CoordinationService.
func (m *Manager) ConfigureApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.ConfigureApiRequest,
) (*coordinationv1.ConfigureApiResponse, error) {
	if err := onlyServices(ctx, "configure an API"); err != nil {
		return nil, err
	}
	if err := checkConfig(req.GetConfig()); err != nil {
		return nil, err
	}
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ConfigureApiResponse, error) {
		configure(t.api, t.state, req.GetConfig())
		t.Emit("configured")
		return &coordinationv1.ConfigureApiResponse{State: present(t.api, t.state, nil, t.caller, t.ledger.now)}, nil
	}, object.Asked(req))
}

// WatchApi implements CoordinationService.
func (m *Manager) WatchApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.WatchApiRequest, stream *connect.ServerStream[coordinationv1.WatchApiResponse],
) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	for c, err := range m.kind.Watch(ctx, object.ID(req.GetApi()), object.Version(req.GetAfterVersion()), recentRequests) {
		if err != nil {
			return err
		}
		if c.Heartbeat {
			err = stream.Send(&coordinationv1.WatchApiResponse{Heartbeat: true, Metadata: &objectv1.Metadata{Version: int64(c.Version)}})
		} else {
			err = stream.Send(m.changed(req.GetApi(), &c, caller))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changed is one message of a watch. Other users' requests are not in it.
func (m *Manager) changed(api string, c *object.Change[state], caller identity.Identity) *coordinationv1.WatchApiResponse {
	res := &coordinationv1.WatchApiResponse{
		Reset_: c.Reset, HasMore: c.More, State: present(api, c.State, nil, caller, m.now()), Metadata: rpc.Metadata(c.Info),
	}
	for _, e := range c.Entries {
		if r, ok := e.Value.(row); ok && mayTouch(caller, r.GetOwner()) {
			res.Requests = append(res.Requests, withoutBody(shown(asSeen(r, m.now()))))
		}
	}
	return res
}
