package coordination

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/identity"
)

// tallies count answers by status and latency in memory, until a change of their API stores them, at most each second: a write for
// each would cost as much as the limits do. A process that dies loses what it has not stored. They hold nothing of users, of whom an
// erasure must leave nothing.
type tallies struct {
	mu  sync.Mutex // guards all; nothing waits while it is held
	all map[tallyKey]*tally
}

type tallyKey struct {
	tenant identity.Tenant
	api    string
}

type tally struct {
	day    *storev1.UsageDay
	stored time.Time
}

const (
	// maxTallies bounds the APIs that are counted so, and the others the names within a day.
	maxTallies  = 10_000
	maxUsers    = 32
	maxStatuses = 32
	storeEvery  = time.Second
)

func (l *tallies) count(key tallyKey, f func(*storev1.UsageDay)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[key]
	if one == nil {
		if len(l.all) >= maxTallies {
			clear(l.all)
		}
		if l.all == nil {
			l.all = map[tallyKey]*tally{}
		}
		one = &tally{}
		l.all[key] = one
	}
	if one.day == nil {
		one.day = &storev1.UsageDay{}
	}
	f(one.day)
}

// take takes what is to be stored, or nil. Who cannot store it puts it back.
func (l *tallies) take(key tallyKey, now time.Time) *storev1.UsageDay {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[key]
	if one == nil || one.day == nil || now.Sub(one.stored) < storeEvery {
		return nil
	}
	day := one.day
	one.day, one.stored = nil, now
	return day
}

func (l *tallies) putBack(key tallyKey, day *storev1.UsageDay) {
	if day != nil {
		l.count(key, func(d *storev1.UsageDay) { addDetails(d, day) })
	}
}

// peek is what is not stored yet, or nil.
func (l *tallies) peek(key tallyKey) *storev1.UsageDay {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.all[key]; one != nil {
		return proto.CloneOf(one.day)
	}
	return nil
}

// byUser counts what a user was granted.
func byUser(user string, permits, cost int64) func(*storev1.UsageDay) {
	return func(d *storev1.UsageDay) {
		i := slices.IndexFunc(d.GetUsers(), func(u *storev1.UserUsage) bool { return u.GetUser() == user })
		switch {
		case i >= 0:
			d.Users[i].Permits += permits
			d.Users[i].Cost += cost
		case len(d.GetUsers()) < maxUsers:
			d.Users = append(d.Users, &storev1.UserUsage{User: user, Permits: permits, Cost: cost})
		}
	}
}

// byAnswer counts an answer by its status and by how long it took.
func byAnswer(status int32, took time.Duration) func(*storev1.UsageDay) {
	bound, next := int32(100), int32(300)
	for took >= time.Duration(bound)*time.Millisecond && bound < 3_000_000 {
		bound, next = next, bound*10
	}
	return func(d *storev1.UsageDay) {
		addDetails(d, &storev1.UsageDay{Statuses: map[int32]int64{status: 1}, Latencies: map[int32]int64{bound: 1}})
	}
}

// addDetails adds the counts of one day to another.
func addDetails(to, from *storev1.UsageDay) {
	for _, u := range from.GetUsers() {
		byUser(u.GetUser(), u.GetPermits(), u.GetCost())(to)
	}
	for status, n := range from.GetStatuses() {
		if to.Statuses == nil {
			to.Statuses = map[int32]int64{}
		}
		if _, known := to.GetStatuses()[status]; !known && len(to.GetStatuses()) >= maxStatuses {
			status = status / 100 * 100
		}
		to.Statuses[status] += n
	}
	for bound, n := range from.GetLatencies() {
		if to.Latencies == nil {
			to.Latencies = map[int32]int64{}
		}
		to.Latencies[bound] += n
	}
}

// detail counts in the details of the day that it is.
func (l *ledger) detail(count func(*storev1.UsageDay)) {
	l.count(func(*storev1.UsageDay) {}) // the day may have turned
	l.endDetails()
	is := proto.CloneOf(l.state.GetDetails())
	if is == nil {
		is = &storev1.UsageDay{Date: l.state.GetToday().GetDate()}
	}
	count(is)
	l.state.Details = is
}

// countUser counts what a user was granted; a service's calls are nobody's.
func (l *ledger) countUser(user string, permits, cost int64) {
	if user != "" {
		l.detail(byUser(user, permits, cost))
	}
}

// endDetails moves the details of a day that is over to that day.
func (l *ledger) endDetails() {
	if l.over != nil && l.state.GetDetails().GetDate() == l.over.GetDate() {
		l.over = proto.CloneOf(l.over)
		addDetails(l.over, l.state.GetDetails())
		l.state.Details = nil
	}
}

// todayOf is the newest day with its details, and what was counted since.
func todayOf(s state, counted *storev1.UsageDay) *storev1.UsageDay {
	if s.GetToday() == nil || s.GetDetails() == nil && counted == nil {
		return s.GetToday()
	}
	day := proto.CloneOf(s.GetToday())
	if s.GetDetails().GetDate() == day.GetDate() {
		addDetails(day, s.GetDetails())
	}
	addDetails(day, counted)
	return day
}
