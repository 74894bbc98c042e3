// Package coordination is the APICoordinator: it stands between a tenant and the APIs that it calls. The ledger sees to
// it that no call is sent twice (ledger.go), the limits that no more is sent than the provider allows (limit.go,
// acquire.go), the breaker that nothing is sent to what is down (breaker.go), and reports that all of it is as the
// provider sees it (observe.go). An API is one object, so a decision about a call, its limits and the breaker is one
// change, the same for all processes.
package coordination

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/identity"
	"holdfast/object"
)

// state is what an API stores.
type state = *storev1.ApiState

const kindName = "api"

// The collections of an API.
const (
	inCalls       = "calls"        // key: the seq
	inCallKeys    = "call_keys"    // key: the owner's key and the call's
	inUserBuckets = "user_buckets" // key: the owner's key
	inUsageDays   = "usage_days"   // key: the date
	inGrants      = "grants"       // key: the owner's key and a number; see groupKey
)

// Register makes the kind "api" known to the runtime.
func Register(rt *object.Runtime) *object.Kind[state] {
	return object.Register(rt, object.KindConfig[state]{
		Name: kindName, SchemaVersion: 1, Users: object.UsersShare, OnTimer: onTimer, Scratch: scratch,
		// What was sent since would be sent again.
		NoRestore: true, NewLife: newLife, BriefJournal: true,
		Collections: map[string]proto.Message{
			inCalls:       &storev1.Call{},
			inCallKeys:    &storev1.CallRef{},
			inUserBuckets: &storev1.UserBuckets{},
			inUsageDays:   &storev1.UsageDay{},
			inGrants:      &storev1.Grants{},
		},
		Owned: []string{inCalls, inCallKeys, inUserBuckets, inGrants},
		Personal: []object.Personal{
			{Message: &storev1.LiveSession{}, User: "owner"},
			{Message: &storev1.ConcurrencyLease{}, User: "owner"},
			{Message: &storev1.LiveCounts{}, User: "last_error_user"},
			{Message: &storev1.UserUsage{}, User: "user"},
		},
	})
}

// newLife begins an API whose id had one before: leases of that one's calls are none of this one's. A fencing token of that one
// is good in this one only where the lives began a multiple of 18 minutes apart, to the microsecond or nearly.
func newLife(s state, issued int64) {
	const tokens = 1 << 30
	s.LastSeq, s.TokenBase = issued, int32(issued%tokens)
}

// Manager serves CoordinationService. It is safe for concurrent use.
type Manager struct {
	kind    *object.Kind[state]
	now     func() time.Time
	refused *prometheus.CounterVec
	lines   lines
	tallies tallies
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
	// key is that of the user whose limits count, and owner is the user, if known; userWas is what their buckets were, where they count.
	key     string
	owner   identity.User
	userWas *storev1.UserBuckets
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

// service reports whether the caller acts for the tenant, not for a user.
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
	key := tallyKey{caller.Tenant, api}
	counted, stored := m.tallies.take(key, m.now()), false
	res, err := object.Do(ctx, m.kind, object.ID(api), asked{req, requestID}, func(otx *object.Tx[state]) (R, error) {
		if !otx.Exists() && !service(caller) && readyMade(api) == nil {
			return none, object.ErrNotFound
		}
		t := newTx(otx, api, caller)
		stored = false
		r, err := rule(t)
		if err != nil {
			answer = r
			return r, err
		}
		if stored = true; counted != nil {
			t.detail(func(d *storev1.UsageDay) { addDetails(d, counted) })
		}
		t.flush()
		return r, nil
	}, append(opts, object.Upsert(), object.Shared())...)
	if err != nil || !stored {
		m.tallies.putBack(key, counted)
	}
	if errors.Is(err, errAnswered) {
		return answer, nil
	}
	if err != nil {
		return none, refuse(err)
	}
	return res, nil
}

func newTx(otx *object.Tx[state], api string, caller identity.Identity) *tx {
	t := &tx{Tx: otx, api: api, caller: caller, key: ownerKey(caller.User), owner: caller.User}
	t.bucketStore = bucketStore{state: otx.State(), user: inForce(nil, otx.State(), nil, time.Time{})}
	t.config, t.ledger.now = configOf(api, t.bucketStore.state), otx.Now()
	return t
}

// at is the version that the change finds, and made the one that it makes.
func (t *tx) at() int64 {
	if !t.Exists() {
		return 0
	}
	return int64(t.Version())
}

func (t *tx) made() int64 { return int64(t.Version()) + 1 }

// loadUser has the buckets of a user at hand, where some policy counts users apart.
func (t *tx) loadUser(user identity.User) {
	if user != "" {
		t.loadKey(ownerKey(user))
		t.owner = user
	}
}

func (t *tx) loadKey(key string) {
	if !countsUsers(t.config) {
		return
	}
	t.key, t.owner = key, ""
	t.userWas, _ = t.Entry(inUserBuckets, key).(*storev1.UserBuckets)
	t.user = inForce(proto.CloneOf(t.userWas), t.state, t.config, t.ledger.now)
}

// inForce returns the buckets of a user where they count still, by the policies of now, or else new ones.
func inForce(u *storev1.UserBuckets, s state, c *storev1.ApiConfig, now time.Time) *storev1.UserBuckets {
	is := &storev1.UserBuckets{Clears: s.GetClears(), ConfigVersion: s.GetConfigVersion()}
	switch {
	case u == nil || u.GetClears() != s.GetClears():
		return is
	case u.GetConfigVersion() == s.GetConfigVersion():
		return u
	}
	convertAll(u.GetPolicies(), c.GetPolicies(), bucketStore{user: u}, bucketStore{user: is}, storev1.Scope_SCOPE_USER, now)
	return is
}

func countsUsers(c *storev1.ApiConfig) bool {
	for _, p := range c.GetPolicies() {
		if scopeOf(p) == storev1.Scope_SCOPE_USER {
			return true
		}
	}
	return false
}

// flush stages what the rule changed besides the state, and the timers that follow from it.
func (t *tx) flush() {
	t.setTimers()
	t.endDetails()
	if t.user != nil && !proto.Equal(t.user, t.userWas) && (len(t.user.GetBuckets()) > 0 || len(t.user.GetPools()) > 0) {
		t.user.Policies = slices.DeleteFunc(slices.Clone(t.config.GetPolicies()), func(p policy) bool { return scopeOf(p) != storev1.Scope_SCOPE_USER })
		switch {
		case t.owner != "":
			t.PutFor(t.owner, inUserBuckets, t.key, t.user)
		case t.userWas != nil:
			t.Put(inUserBuckets, t.key, t.user)
		}
	}
	if t.over != nil {
		t.Put(inUsageDays, t.over.GetDate(), t.over)
	}
}

// putRow stages a row of the ledger, and the way to find it.
func (t *tx) putRow(r row) {
	owner := identity.User(r.GetOwner())
	key, seq := callKey(owner, r.GetKey()), object.SeqKey(r.GetSeq())
	if ref, _ := t.Entry(inCallKeys, key).(*storev1.CallRef); ref.GetSeq() != r.GetSeq() {
		t.ExpectAbsent(inCalls, seq) // the call is new
		t.PutFor(owner, inCallKeys, key, &storev1.CallRef{Seq: r.GetSeq()})
	}
	t.PutFor(owner, inCalls, seq, r)
}

// find is the row of a user's call, or nil.
func (t *tx) find(user identity.User, key string) row {
	ref, _ := t.Entry(inCallKeys, callKey(user, key)).(*storev1.CallRef)
	if ref == nil {
		return nil
	}
	r, _ := t.Entry(inCalls, object.SeqKey(ref.GetSeq())).(row)
	return r
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

func callKey(user identity.User, key string) string { return ownerKey(user) + "/" + key }
