package coordination

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// demand is what one call wants from the limits.
type demand struct {
	operation     string
	permits, cost int64
	// only are the policies that count; none: all that cover the operation.
	only []string
	// users: the policies of the scope user count as well.
	users bool
	// leaseID names what runs at once, and owner is whose it is. lease overrides how long it may, where it is not 0. An empty
	// leaseID becomes that of the grant.
	leaseID, owner string
	lease          time.Duration
	// version is that of the change, and userKey the user's in collections, for the grant.
	version int64
	userKey string
}

func (d *demand) of(p policy) int64 {
	if unitOf(p) == storev1.Unit_UNIT_COST {
		return d.cost
	}
	return d.permits
}

// covers reports whether a policy counts for the call.
func (d *demand) covers(p policy) bool {
	switch {
	case scopeOf(p) == storev1.Scope_SCOPE_USER && !d.users:
		return false
	case len(d.only) > 0:
		return slices.Contains(d.only, p.GetName())
	}
	return len(p.GetOperations()) == 0 || slices.ContainsFunc(p.GetOperations(), func(pattern string) bool {
		return fits(pattern, d.operation)
	})
}

// fits reports whether an operation matches a pattern, in which each * stands for any characters or none. A slash is a
// character like any other: a limit that covers too much is noticed, and one that covers too little is not.
func fits(pattern, operation string) bool {
	parts := strings.Split(pattern, "*")
	last := len(parts) - 1
	if last == 0 {
		return pattern == operation
	}
	rest, ok := strings.CutPrefix(operation, parts[0])
	for _, part := range parts[1:last] {
		if ok {
			_, rest, ok = strings.Cut(rest, part)
		}
	}
	return ok && strings.HasSuffix(rest, parts[last])
}

// leases reports whether a policy that counts what runs at once covers the call.
func (d *demand) leases(c *storev1.ApiConfig) bool {
	return slices.ContainsFunc(c.GetPolicies(), func(p policy) bool { return countsAtOnce(p) && d.covers(p) })
}

// countsAtOnce reports whether a policy counts what runs at once.
func countsAtOnce(p policy) bool { return p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_CONCURRENCY }

// bucketStore holds the buckets of an API, and those of one user if policies of the scope user count.
type bucketStore struct {
	state *storev1.ApiState
	user  *storev1.UserBuckets
}

// at is where a policy's bucket is.
func (s bucketStore) at(p policy) *map[string]bucket {
	user := scopeOf(p) == storev1.Scope_SCOPE_USER
	switch {
	case user && countsAtOnce(p):
		return &s.user.Pools
	case user:
		return &s.user.Buckets
	case countsAtOnce(p):
		return &s.state.Pools
	}
	return &s.state.Buckets
}

func (s bucketStore) get(p policy) bucket { return (*s.at(p))[p.GetName()] }

func (s bucketStore) put(p policy, b bucket) {
	m := s.at(p)
	if *m == nil {
		*m = map[string]bucket{}
	}
	(*m)[p.GetName()] = b
}

// bucket is a policy's bucket, tidied, and made where there is none.
func (s bucketStore) bucket(p policy, now time.Time) bucket {
	b := s.get(p)
	if b == nil {
		b = &storev1.Bucket{}
		s.put(p, b)
	}
	tidy(p, b, now)
	return b
}

// verdict is whether a call may go.
type verdict struct {
	allowed bool
	// retryAt is when to ask again, where it may not; never: it is more than a policy ever lets pass, which is tooMuch.
	retryAt time.Time
	reason  coordinationv1.WaitReason
	tooMuch string
	limits  []*coordinationv1.Standing
	// probe: the call is the breaker's probe.
	probe bool
	// sendWithin is the least margin of the policies that have one; 0: none has.
	sendWithin time.Duration
	// leases: some policy counts what runs at once; leaseUntil is when that lease ends.
	leases     bool
	leaseUntil time.Time
	// renewed: the lease ran already, and nothing was taken.
	renewed bool
	// grant is what was taken.
	grant grant
}

// acquire lets a call pass and takes what it wants, or does neither. peek takes nothing in any case. It changes the
// state for the better only, by forgetting what is over, where the call may not pass.
func acquire(s bucketStore, c *storev1.ApiConfig, d *demand, peek bool, now time.Time) verdict {
	v := verdict{allowed: true, retryAt: now}
	refuse := func(at time.Time, reason coordinationv1.WaitReason) {
		v.allowed = false
		if at.After(v.retryAt) || v.reason == coordinationv1.WaitReason_WAIT_REASON_UNSPECIFIED {
			v.retryAt, v.reason = at, reason
		}
	}
	covering := make([]policy, 0, len(c.GetPolicies()))
	renews := d.leaseID != ""
	g := grant{version: d.version, at: now, permits: d.permits, cost: d.cost}
	for i, p := range c.GetPolicies() {
		if !d.covers(p) {
			continue
		}
		covering = append(covering, p)
		g.policies |= 1 << i
		if scopeOf(p) == storev1.Scope_SCOPE_USER {
			g.user = d.userKey
		}
		if countsAtOnce(p) {
			l := s.bucket(p, now).GetLeases()[d.leaseID]
			renews = renews && l != nil && l.GetOwner() == d.owner
			v.leases = true
		}
	}
	if v.leases && renews {
		v.renewed = true
		for _, p := range covering {
			if countsAtOnce(p) && !peek {
				v.lease(s.bucket(p, now), p, d, now)
			}
			v.limits = append(v.limits, standing(p, s.bucket(p, now), now))
		}
		return v
	}

	if until := s.state.GetPauseUntil().AsTime(); until.After(now) {
		refuse(until, coordinationv1.WaitReason_WAIT_REASON_PAUSE)
	}
	breaker := s.breaker(c, d.operation)
	at, probe := breakerPasses(breaker, c.GetBreaker(), now)
	if at.After(now) {
		reason := coordinationv1.WaitReason_WAIT_REASON_BREAKER
		if breaker.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN {
			reason = coordinationv1.WaitReason_WAIT_REASON_PROBE
		}
		refuse(at, reason)
	}
	refused := make([]time.Time, len(covering))
	for i, p := range covering {
		b := s.bucket(p, now)
		if at := passes(p, b, d.of(p), now); at.After(now) {
			refused[i] = at
			refuse(at, coordinationv1.WaitReason_WAIT_REASON_LIMIT)
			if at.Equal(never) {
				v.tooMuch = p.GetName()
			}
		}
	}
	if v.allowed && !peek {
		if v.probe = probe; probe {
			startProbe(breaker, c.GetBreaker(), probeLease(c), now)
		}
		g.generation, g.operation = breaker.GetGeneration(), operationMark(c, d.operation)
		if v.grant = g; d.leaseID == "" {
			d.leaseID = g.id()
		}
		for _, p := range covering {
			b := s.bucket(p, now)
			if countsAtOnce(p) {
				v.lease(b, p, d, now)
			} else {
				take(p, b, d.of(p), now)
			}
		}
	}
	for i, p := range covering {
		st := standing(p, s.bucket(p, now), now)
		if !refused[i].IsZero() {
			st.Refused, st.RetryAfter = true, durationpb.New(refused[i].Sub(now))
		}
		v.limits = append(v.limits, st)
	}
	v.sendWithin = sendWithin(c, d)
	return v
}

// sendWithin is the least margin of the policies that cover a call; 0: none has one.
func sendWithin(c *storev1.ApiConfig, d *demand) (least time.Duration) {
	for _, p := range c.GetPolicies() {
		if m := p.GetMargin().AsDuration(); m > 0 && (least == 0 || m < least) && d.covers(p) {
			least = m
		}
	}
	return least
}

const defaultLease = 60 * time.Second

func (v *verdict) lease(b bucket, p policy, d *demand, now time.Time) {
	lasts := d.lease
	if lasts == 0 {
		if lasts = p.GetLease().AsDuration(); lasts == 0 {
			lasts = defaultLease
		}
	}
	until := now.Add(lasts)
	if v.leaseUntil.IsZero() || until.Before(v.leaseUntil) {
		v.leaseUntil = until
	}
	takeLease(b, d.leaseID, d.of(p), d.owner, until)
}

func probeLease(c *storev1.ApiConfig) time.Duration {
	if c.GetBreaker().GetProbeLease() != nil {
		return c.GetBreaker().GetProbeLease().AsDuration()
	}
	return callLease(c)
}

// charge corrects what a call took once its true cost is known. More than thought is taken whether or not it is there;
// less is given back.
func charge(s bucketStore, c *storev1.ApiConfig, d *demand, actual int64, taken, now time.Time) {
	for _, p := range c.GetPolicies() {
		if unitOf(p) != storev1.Unit_UNIT_COST || countsAtOnce(p) || !d.covers(p) {
			continue
		}
		b := s.bucket(p, now)
		if actual > d.cost {
			take(p, b, actual-d.cost, now)
		} else {
			giveBack(p, b, d.cost-actual, taken, now)
		}
	}
}

// refund gives back what a call took at that time and did not use.
func refund(s bucketStore, c *storev1.ApiConfig, d *demand, taken, now time.Time) {
	for _, p := range c.GetPolicies() {
		if d.covers(p) {
			giveBack(p, s.bucket(p, now), d.of(p), taken, now)
		}
	}
}

// releaseLease ends what runs under an id, of whatever policy; owner "" may end anybody's.
func releaseLease(pools map[string]bucket, id string, owner string, service bool) (released bool) {
	for _, b := range pools {
		if l := b.GetLeases()[id]; l != nil && (service || l.GetOwner() == owner) {
			delete(b.Leases, id)
			released = true
		}
	}
	return released
}

// standings are how all policies stand, of the user too where user is given.
func standings(s *storev1.ApiState, user *storev1.UserBuckets, c *storev1.ApiConfig, now time.Time) []*coordinationv1.Standing {
	// A reader must leave what it reads alone, and buckets are tidied.
	sh := bucketStore{state: &storev1.ApiState{Buckets: cloned(s.GetBuckets()), Pools: cloned(s.GetPools())}}
	if user != nil {
		sh.user = proto.CloneOf(user)
	}
	var out []*coordinationv1.Standing
	for _, p := range c.GetPolicies() {
		if scopeOf(p) == storev1.Scope_SCOPE_USER && user == nil {
			continue
		}
		out = append(out, standing(p, sh.bucket(p, now), now))
	}
	return out
}

func cloned(m map[string]bucket) map[string]bucket {
	out := make(map[string]bucket, len(m))
	for k, b := range m {
		out[k] = proto.CloneOf(b)
	}
	return out
}

// countUsage adds what was granted to the day's counts. It returns the day that is over by that, if one is.
func countUsage(s *storev1.ApiState, c *storev1.ApiConfig, now time.Time, count func(*storev1.UsageDay)) *storev1.UsageDay {
	var over *storev1.UsageDay
	// The clock of another process may be a little behind: days do not go back.
	if !now.Before(s.GetToday().GetEndTime().AsTime()) {
		zone := location(c.GetTimeZone())
		date := now.In(zone).Format(time.DateOnly)
		end := stamp(nextTurn(storev1.Calendar_CALENDAR_DAY, zone, now))
		switch was := s.GetToday(); {
		case was.GetDate() == date: // the zone was changed meanwhile
			s.Today.EndTime = end
		default:
			over = was
			s.Today = &storev1.UsageDay{Date: date, EndTime: end}
		}
	}
	count(s.Today)
	return over
}

const maxOperations = 64

func countPermits(operation string, permits, cost int64) func(*storev1.UsageDay) {
	return func(d *storev1.UsageDay) {
		d.Permits += permits
		d.Cost += cost
		if operation == "" {
			return
		}
		if _, known := d.GetOperations()[operation]; !known && len(d.GetOperations()) >= maxOperations {
			operation = "other"
		}
		if d.Operations == nil {
			d.Operations = map[string]int64{}
		}
		d.Operations[operation] += permits
	}
}

func stamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
