package coordination

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// The ledger of an API: one row for each call, whatever number of times it is asked for.
//
//	              begin                    finish, completed
//	(new) ──────────────────> in flight ──────────────> completed
//	                           │  │  │
//	  begin, attempt + 1       │  │  └─ failed, terminal ─> failed
//	retryable <────────────────┘  │
//	  ^      failed, retryable    └─ failed, unknown; or the lease ends ─> unknown
//	  │                                                                    │ ^
//	  │                                                   begin, reconcile │ │ the lease ends; still open
//	  └── it did not happen ──────────────────────────────────────── reconciling ──> completed, failed
//
// Only an arrow to "in flight" lets anything be sent, and none leads there from unknown.

type row = *storev1.Call

const (
	defaultRetention   = 7 * 24 * time.Hour
	defaultMaxAttempts = 10
	// maxInFlight bounds the calls of one API whose lease runs.
	maxInFlight = 1000
)

var (
	errReused    = errors.New("the key was used for another call")
	errGrantUsed = errors.New("the grant_id was used for another call")
	errLeaseLost = errors.New("another has taken over")
	errCallDone  = errors.New("the call is done")
	errNoCall    = errors.New("there is no such call")
	errTooMany   = errors.New("too many calls are in flight")
)

func callLease(c *storev1.ApiConfig) time.Duration {
	if c.GetLease() != nil {
		return c.GetLease().AsDuration()
	}
	return defaultLease
}

func retention(c *storev1.ApiConfig) time.Duration {
	if c.GetRetention() != nil {
		return c.GetRetention().AsDuration()
	}
	return defaultRetention
}

func maxAttempts(c *storev1.ApiConfig) int32 {
	if c.GetMaxAttempts() > 0 {
		return c.GetMaxAttempts()
	}
	return defaultMaxAttempts
}

// forgotten reports whether a row is older than the ledger keeps it. It then counts as gone, swept or not.
func forgotten(r row, c *storev1.ApiConfig, now time.Time) bool {
	return !now.Before(r.GetCreateTime().AsTime().Add(retention(c)))
}

func holdsLease(r row) bool {
	return r.GetStatus() == storev1.CallStatus_CALL_STATUS_IN_FLIGHT ||
		r.GetStatus() == storev1.CallStatus_CALL_STATUS_RECONCILING
}

// asSeen is a row as it is by now: what was in flight when its lease ended is unknown from that instant on.
func asSeen(r row, now time.Time) row {
	if r == nil || !holdsLease(r) || now.Before(r.GetLeaseExpireTime().AsTime()) {
		return r
	}
	r = proto.CloneOf(r)
	if r.GetStatus() == storev1.CallStatus_CALL_STATUS_IN_FLIGHT {
		r.Error = "the lease ended before anybody said what became of the call"
	}
	r.Status = storev1.CallStatus_CALL_STATUS_UNKNOWN
	r.UpdateTime, r.LeaseExpireTime = r.GetLeaseExpireTime(), nil
	return r
}

// ledger is what a rule of the ledger works on: one API, and the day's count that its change brought to an end.
type ledger struct {
	bucketStore

	config *storev1.ApiConfig
	now    time.Time
	over   *storev1.UsageDay
	// retryAt is when the provider wants a call that ends to be sent again; zero: it does not say.
	retryAt time.Time
}

func (l *ledger) count(f func(*storev1.UsageDay)) {
	if over := countUsage(l.state, l.config, l.now, f); over != nil {
		l.over = over
	}
}

// settle writes down that a lease has ended. It returns nil where that is not so, or is written already.
func (l *ledger) settle(r row) row {
	seen := asSeen(r, l.now)
	if seen == r {
		return nil
	}
	l.dropInFlight(r.GetSeq())
	if r.GetStatus() == storev1.CallStatus_CALL_STATUS_IN_FLIGHT {
		l.count(func(d *storev1.UsageDay) { d.Unknown++ })
		breakerHears(l.breaker(l.config, r.GetOperation()), l.config.GetBreaker(), r.GetBreakerGeneration(), healthDown, l.now)
	}
	return seen
}

func (l *ledger) dropInFlight(seq int64) {
	all := l.state.GetInFlight() // shared with earlier states
	if i := slices.IndexFunc(all, func(f *storev1.InFlight) bool { return f.GetSeq() == seq }); i >= 0 {
		l.state.InFlight = slices.Concat(all[:i], all[i+1:])
	}
}

func (l *ledger) putInFlight(r row) {
	l.dropInFlight(r.GetSeq())
	l.state.InFlight = append(slices.Clip(l.state.GetInFlight()), &storev1.InFlight{Seq: r.GetSeq(), ExpireTime: r.GetLeaseExpireTime()})
}

// begun is the answer to a begin, the row that it is about, or nil, and the row to store, where something changed.
type begun struct {
	res      *coordinationv1.BeginCallResponse
	row, put row
}

// begin decides about a call of owner. r is its row, or nil.
func (l *ledger) begin(r row, req *coordinationv1.BeginCallRequest, owner string) (begun, error) {
	if r != nil && forgotten(r, l.config, l.now) {
		r = nil
	}
	if r == nil && req.GetReconcile() {
		return begun{}, errNoCall
	}
	if r != nil && (r.GetOperation() != req.GetOperation() || r.GetFingerprint() != req.GetFingerprint()) {
		return begun{}, errReused
	}
	var settled row
	if r != nil {
		if settled = l.settle(r); settled != nil {
			r = settled
		}
	}
	answer := func(d coordinationv1.Decision, put row) begun {
		return begun{&coordinationv1.BeginCallResponse{Decision: d}, r, put}
	}
	switch r.GetStatus() {
	case storev1.CallStatus_CALL_STATUS_COMPLETED, storev1.CallStatus_CALL_STATUS_FAILED:
		return answer(coordinationv1.Decision_DECISION_DONE, settled), nil
	case storev1.CallStatus_CALL_STATUS_IN_FLIGHT, storev1.CallStatus_CALL_STATUS_RECONCILING:
		reconciles := r.GetStatus() == storev1.CallStatus_CALL_STATUS_RECONCILING
		b := answer(coordinationv1.Decision_DECISION_IN_FLIGHT, settled)
		if repeats(r, req) && reconciles == req.GetReconcile() {
			l.grant(b.res, r)
			if within := sendWithin(l.config, demandOfRow(r)); within > 0 && !reconciles {
				b.res.SendWithin = durationpb.New(within)
			}
			return b, nil
		}
		b.res.RetryAfter = durationpb.New(r.GetLeaseExpireTime().AsTime().Sub(l.now))
		return b, nil
	case storev1.CallStatus_CALL_STATUS_UNKNOWN:
		if !req.GetReconcile() {
			return answer(coordinationv1.Decision_DECISION_UNKNOWN, settled), nil
		}
		if len(l.state.GetInFlight()) >= maxInFlight {
			return begun{}, errTooMany
		}
		r = proto.CloneOf(r)
		r.Status = storev1.CallStatus_CALL_STATUS_RECONCILING
		l.lease(r, req)
		b := answer(coordinationv1.Decision_DECISION_RECONCILE, r)
		l.grant(b.res, r)
		return b, nil
	case storev1.CallStatus_CALL_STATUS_RETRYABLE:
		if r.GetAttempt() >= maxAttempts(l.config) {
			r = proto.CloneOf(r)
			r.Status, r.UpdateTime = storev1.CallStatus_CALL_STATUS_FAILED, stamp(l.now)
			r.Error = fmt.Sprintf("given up after %d attempts; the last one: %s", r.GetAttempt(), r.GetError())
			l.count(func(d *storev1.UsageDay) { d.Failed++ })
			return answer(coordinationv1.Decision_DECISION_DONE, r), nil
		}
		if wait := r.GetNotBefore().AsTime().Sub(l.now); wait > 0 || req.GetReconcile() {
			b := answer(coordinationv1.Decision_DECISION_WAIT, settled)
			b.res.WaitReason, b.res.RetryAfter = coordinationv1.WaitReason_WAIT_REASON_BACKOFF, durationpb.New(max(0, wait))
			return b, nil
		}
	default: // new
	}
	return l.send(r, req, owner)
}

// send begins an attempt, where the limits and the breaker let it.
func (l *ledger) send(r row, req *coordinationv1.BeginCallRequest, owner string) (begun, error) {
	if len(l.state.GetInFlight()) >= maxInFlight {
		return begun{}, errTooMany
	}
	seq := r.GetSeq()
	if r == nil {
		seq = l.state.GetLastSeq() + 1
	}
	d := demandOf(req.GetOperation(), max(1, req.GetPermits()), req.GetCost(), owner, seq)
	d.lease = l.timeout(req)
	v := acquire(l.bucketStore, l.config, d, false, l.now)
	res := &coordinationv1.BeginCallResponse{Limits: v.limits}
	if !v.allowed {
		if v.tooMuch != "" {
			return begun{}, tooMuchError(v.tooMuch)
		}
		res.Decision, res.WaitReason, res.RetryAfter = coordinationv1.Decision_DECISION_WAIT, v.reason, durationpb.New(v.retryAt.Sub(l.now))
		return begun{res: res, row: r}, nil
	}
	if r == nil {
		l.state.LastSeq = seq
		if l.state.GetFirstSeq() == 0 {
			l.state.FirstSeq, l.state.FirstTime = seq, stamp(l.now)
		}
		r = &storev1.Call{
			Key: req.GetKey(), Seq: seq, Owner: owner, Operation: req.GetOperation(), Fingerprint: req.GetFingerprint(),
			CreateTime: stamp(l.now), FencingToken: l.state.GetTokenBase(),
		}
		l.count(func(u *storev1.UsageDay) { u.Begun++ })
	} else {
		r = proto.CloneOf(r)
	}
	l.count(countPermits(d.operation, d.permits, d.cost))
	l.countUser(owner, d.permits, d.cost)
	r.Status, r.Error, r.NotBefore = storev1.CallStatus_CALL_STATUS_IN_FLIGHT, "", nil
	r.Attempt++
	r.BeginTime, r.Permits, r.Cost = stamp(l.now), d.permits, d.cost
	breaker := l.breaker(l.config, d.operation)
	r.BreakerGeneration = breaker.GetGeneration()
	l.lease(r, req)
	r.AttemptToken = r.GetFencingToken()
	if v.probe {
		// The probe's lease is the call's: both end, at the latest, at once.
		breaker.RetryTime = r.GetLeaseExpireTime()
	}
	res.Probe = v.probe
	l.grant(res, r)
	if v.sendWithin > 0 {
		res.SendWithin = durationpb.New(v.sendWithin)
	}
	return begun{res, r, r}, nil
}

// repeats reports whether the row's lease was given to the same request.
func repeats(r row, req *coordinationv1.BeginCallRequest) bool {
	return req.GetRequestId() != "" && req.GetRequestId() == r.GetRequestId()
}

func (l *ledger) timeout(req *coordinationv1.BeginCallRequest) time.Duration {
	if req.GetTimeout() != nil {
		return req.GetTimeout().AsDuration()
	}
	return callLease(l.config)
}

// lease gives the row to the caller that begins.
func (l *ledger) lease(r row, req *coordinationv1.BeginCallRequest) {
	r.FencingToken++
	r.Holder, r.RequestId = req.GetHolder(), req.GetRequestId()
	r.UpdateTime = stamp(l.now)
	r.LeaseExpireTime = timestamppb.New(l.now.Add(l.timeout(req)))
	l.putInFlight(r)
}

// grant says that the lease is the caller's.
func (l *ledger) grant(res *coordinationv1.BeginCallResponse, r row) {
	res.Decision = coordinationv1.Decision_DECISION_PROCEED
	if r.GetStatus() == storev1.CallStatus_CALL_STATUS_RECONCILING {
		res.Decision = coordinationv1.Decision_DECISION_RECONCILE
	}
	res.Lease = leaseOf(r)
	res.Lease.ExpiresIn = durationpb.New(r.GetLeaseExpireTime().AsTime().Sub(l.now))
}

// demandOf is what an attempt wants of the limits. Its lease, where a policy counts what runs at once, is the row's.
func demandOf(operation string, permits, cost int64, owner string, seq int64) *demand {
	return &demand{
		operation: operation, permits: permits, cost: cost, users: owner != "", owner: owner,
		leaseID: callLeaseID(seq),
	}
}

// callLeaseID holds what no lease id of a caller may: it cannot be renewed or released but by its call.
func callLeaseID(seq int64) string { return "call/" + strconv.FormatInt(seq, 10) }

func demandOfRow(r row) *demand {
	return demandOf(r.GetOperation(), r.GetPermits(), r.GetCost(), r.GetOwner(), r.GetSeq())
}

// mayEnd checks that a lease may say what became of a row: the newest lease while it is needed, and the lease of the
// newest attempt as long as nothing else came after it, however late: what is known for certain is always welcome.
func mayEnd(r row, token int32, succeeded bool) error {
	if token != r.GetFencingToken() && token != r.GetAttemptToken() {
		return errLeaseLost
	}
	switch r.GetStatus() {
	case storev1.CallStatus_CALL_STATUS_IN_FLIGHT, storev1.CallStatus_CALL_STATUS_RECONCILING,
		storev1.CallStatus_CALL_STATUS_UNKNOWN:
		return nil
	case storev1.CallStatus_CALL_STATUS_RETRYABLE:
		if succeeded { // somebody was wrong to say that it had not happened, and it has not been sent again yet
			return nil
		}
	default: // completed or failed
	}
	return errCallDone
}

// settleBy finishes a call, and corrects the limits by what the provider answered. It returns nil where the row has that already.
func (l *ledger) settleBy(r row, req *coordinationv1.FinishCallRequest, mayRaise bool) (row, error) {
	sent := r.GetBeginTime().AsTime()
	o := observe(answerOf(req), sent, l.now)
	l.retryAt = againAt(o)
	done, err := l.finish(r, req)
	if err != nil || done == nil {
		return nil, err
	}
	correct(l.bucketStore, l.config, demandOfRow(r), o, mayRaise, sent, l.now)
	if req.GetCompleted() != nil {
		succeeded(l.state, sent, l.now)
	}
	return done, nil
}

// answerOf is what the provider answered: the response, or for want of one what the failure keeps of it.
func answerOf(req *coordinationv1.FinishCallRequest) *coordinationv1.ProviderResponse {
	if kept := req.GetFailed().GetOutcome(); req.GetResponse() == nil && kept != nil {
		return &coordinationv1.ProviderResponse{HttpStatus: kept.GetHttpStatus(), Headers: kept.GetHeaders(), Body: kept.GetBody()}
	}
	return req.GetResponse()
}

// finish stores what became of a call. It returns nil where the row has that already.
func (l *ledger) finish(r row, req *coordinationv1.FinishCallRequest) (row, error) {
	token, failed := req.GetFencingToken(), req.GetFailed()
	status, h, outcome := storev1.CallStatus_CALL_STATUS_COMPLETED, healthUp, as[*storev1.Outcome](req.GetCompleted())
	if failed != nil {
		outcome = as[*storev1.Outcome](failed.GetOutcome())
		switch failed.GetFailure() {
		case coordinationv1.Failure_FAILURE_RETRYABLE:
			status, h = storev1.CallStatus_CALL_STATUS_RETRYABLE, healthDown
		case coordinationv1.Failure_FAILURE_TERMINAL:
			status = storev1.CallStatus_CALL_STATUS_FAILED // it answered
		default:
			status, h = storev1.CallStatus_CALL_STATUS_UNKNOWN, healthDown
		}
		if failed.GetNotDown() {
			h = healthNone
		}
	}
	if r.GetStatus() == status && (failed == nil || token == r.GetFencingToken()) && r.GetError() == failed.GetError() &&
		proto.Equal(r.GetOutcome(), outcome) {
		return nil, nil
	}
	if settled := l.settle(r); settled != nil {
		r = settled
	}
	if err := mayEnd(r, token, failed == nil); err != nil {
		return nil, err
	}
	ends := token == r.GetAttemptToken() && r.GetStatus() == storev1.CallStatus_CALL_STATUS_IN_FLIGHT
	l.end(r, ends, h)
	was, taken, cost := r.GetStatus(), r.GetBeginTime().AsTime(), r.GetCost()
	switch {
	case failed.GetNotSent() && token == r.GetAttemptToken():
		refund(l.bucketStore, l.config, demandOfRow(r), taken, l.now)
		l.count(countPermits(r.GetOperation(), -r.GetPermits(), -cost))
		l.countUser(r.GetOwner(), -r.GetPermits(), -cost)
	case req.Cost != nil:
		charge(l.bucketStore, l.config, demandOfRow(r), req.GetCost(), taken, l.now)
		l.count(func(d *storev1.UsageDay) { d.Cost = max(0, d.GetCost()+req.GetCost()-cost) })
		cost = req.GetCost()
	}
	r = proto.CloneOf(r)
	r.Status, r.Outcome, r.Error, r.Cost = status, outcome, failed.GetError(), cost
	r.UpdateTime, r.LeaseExpireTime, r.NotBefore = stamp(l.now), nil, nil
	switch notBefore := l.retryAt; {
	case status != storev1.CallStatus_CALL_STATUS_RETRYABLE:
	case failed.GetRetryAfter() != nil:
		r.NotBefore = timestamppb.New(l.now.Add(failed.GetRetryAfter().AsDuration()))
	case ends && notBefore.After(l.now):
		r.NotBefore = stamp(notBefore)
	case ends && !(failed.GetNotSent() && failed.GetNotDown()):
		r.NotBefore = stamp(l.now.Add(backoff(r.GetAttempt(), l.now)))
	}
	l.count(func(d *storev1.UsageDay) {
		switch status {
		case storev1.CallStatus_CALL_STATUS_COMPLETED:
			d.Completed++
		case storev1.CallStatus_CALL_STATUS_RETRYABLE:
			d.Retryable++
		case storev1.CallStatus_CALL_STATUS_FAILED:
			d.Failed++
		default:
			if was == storev1.CallStatus_CALL_STATUS_IN_FLIGHT {
				d.Unknown++
			}
		}
	})
	return r, nil
}

// end gives back what runs at once, and tells the breaker how the attempt went, where it is the attempt that ends.
func (l *ledger) end(r row, ends bool, h health) {
	l.dropInFlight(r.GetSeq())
	id := callLeaseID(r.GetSeq())
	releaseLease(l.state.GetPools(), id, "", true)
	releaseLease(l.user.GetPools(), id, "", true)
	if ends {
		h = slow(h, l.config.GetBreaker(), l.now.Sub(r.GetBeginTime().AsTime()))
		breakerHears(l.breaker(l.config, r.GetOperation()), l.config.GetBreaker(), r.GetBreakerGeneration(), h, l.now)
	}
}

// tooMuchError: a call wants more than a policy ever lets pass at once.
type tooMuchError string

func (e tooMuchError) Error() string { return "more than the policy " + string(e) + " ever lets pass" }
