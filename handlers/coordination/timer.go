package coordination

import (
	"time"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/identity"
	"holdfast/object"
)

// The timers of an API. They tell watchers of what the clock has changed, and clean up. No decision waits for them:
// leases, windows and retention are read by the clock.
const (
	timerLeases    = "leases"    // a lease may have ended
	timerRetention = "retention" // the oldest call may be forgotten
)

// perTimer bounds what one timer does: the entries that it looks at are loaded one after the other.
const perTimer = 16

// setTimers sees to it that a timer is set for the next lease that ends and for the oldest call. One that is early is
// left: when it comes it sets itself again. That way most calls set no timer.
func (t *tx) setTimers() {
	var first time.Time
	for _, f := range t.state.GetInFlight() {
		if at := f.GetExpireTime().AsTime(); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	t.wakeBy(timerLeases, first)
	if t.state.GetFirstSeq() > 0 {
		t.wakeBy(timerRetention, t.state.GetFirstTime().AsTime().Add(retention(t.config)))
	}
}

func (t *tx) wakeBy(name string, at time.Time) {
	if set, ok := t.Timer(name); !at.IsZero() && (!ok || set.After(at)) {
		t.SetTimer(name, at)
	}
}

// onTimer runs as the tenant's service. The config that it works by needs the API's name, which a ready-made one has.
func onTimer(otx *object.Tx[state], name string) error {
	t := newTx(otx, string(otx.Info().ID), otx.Caller())
	switch name {
	case timerLeases:
		t.endLeases()
	case timerRetention:
		t.forget()
	}
	t.flush()
	return nil
}

// endLeases writes down which leases have ended.
func (t *tx) endLeases() {
	var ended []int64
	for _, f := range t.state.GetInFlight() {
		if !t.ledger.now.Before(f.GetExpireTime().AsTime()) && len(ended) < perTimer {
			ended = append(ended, f.GetSeq())
		}
	}
	for _, seq := range ended {
		r, _ := t.Entry(inCalls, object.SeqKey(seq)).(row)
		settled := row(nil)
		if r != nil {
			settled = t.settle(r)
		}
		if settled == nil {
			t.dropInFlight(seq) // its row says otherwise, and the row is right
			continue
		}
		t.putRow(settled)
	}
}

// forget removes the oldest calls that the ledger need not keep any more.
func (t *tx) forget() {
	s := t.state
	for range perTimer {
		if s.GetFirstSeq() > s.GetLastSeq() {
			s.FirstSeq, s.FirstTime = 0, nil
			return
		}
		key := object.SeqKey(s.GetFirstSeq())
		r, _ := t.Entry(inCalls, key).(row)
		if r != nil && !forgotten(r, t.config, t.ledger.now) {
			s.FirstTime = r.GetCreateTime()
			return
		}
		if r != nil {
			t.DeleteEntry(inCalls, key)
			t.dropInFlight(r.GetSeq())
			id := callKey(identity.User(r.GetOwner()), r.GetKey())
			// The key may have been used again since, for a newer call.
			if ref, _ := t.Entry(inCallKeys, id).(*storev1.CallRef); ref.GetSeq() == r.GetSeq() {
				t.DeleteEntry(inCallKeys, id)
			}
		}
		s.FirstSeq++
	}
	// More may be due: at once again.
	s.FirstTime = stamp(t.ledger.now.Add(-retention(t.config)))
}
