package coordination

import (
	"errors"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/object"
)

const (
	maxResources = 64
	maxLive      = 1000
	defaultTTL   = 15 * time.Minute
)

var (
	errBackwards        = errors.New("the high-water mark does not go back")
	errTooManyResources = errors.New("too many resources are synced")
	errFenced           = errors.New("a newer epoch was reported")
	errTooManyLive      = errors.New("too many live sessions are reported")
)

// reportSync notes how far a copy has come. Fields that the report leaves out stay, but for the cursor and the error.
func reportSync(s *storev1.ApiState, req *coordinationv1.SyncReport, now time.Time) error {
	was, is := s.GetSync()[req.GetResource()], as[*storev1.SyncState](req.GetState())
	if was == nil {
		if len(s.GetSync()) >= maxResources {
			return errTooManyResources
		}
		was = &storev1.SyncState{}
	}
	if !req.GetReset_() && is.GetHighWaterMark() != nil && is.GetHighWaterMark().AsTime().Before(was.GetHighWaterMark().AsTime()) {
		return errBackwards
	}
	next := proto.CloneOf(was)
	if req.GetReset_() {
		next = &storev1.SyncState{}
	}
	if next.LastWebhookTime != nil && is.GetLastWebhookTime() != nil && is.GetLastWebhookTime().AsTime().Before(next.GetLastWebhookTime().AsTime()) {
		// A webhook that was overtaken: it says nothing about the newest.
		is.LastWebhookTime, is.WebhookLag = nil, nil
	}
	proto.Merge(next, is)
	if is.GetLastWebhookTime() != nil && is.GetWebhookLag() == nil {
		next.WebhookLag = durationpb.New(max(0, now.Sub(is.GetLastWebhookTime().AsTime())))
	}
	next.PageCursor, next.Error, next.UpdateTime = is.GetPageCursor(), is.GetError(), stamp(now)
	if s.Sync = maps.Clone(s.GetSync()); s.Sync == nil { // it is shared with earlier states
		s.Sync = map[string]*storev1.SyncState{}
	}
	s.Sync[req.GetResource()] = next
	return nil
}

// reportLive notes how a live session stands, for who has it.
func (t *tx) reportLive(req *coordinationv1.LiveReport) error {
	l := t.state.GetLive()[req.GetProviderSessionId()]
	if l != nil && !mayTouch(t.caller, l.GetOwner()) && t.ledger.now.Before(l.GetExpireTime().AsTime()) {
		return object.ErrNotFound
	}
	return reportLive(t.state, req, string(t.caller.User), t.ledger.now)
}

// reportLive notes how a live session stands. A session that closed is not kept, only counted; one that failed is kept
// until its time is over, so that one can see why.
func reportLive(s *storev1.ApiState, req *coordinationv1.LiveReport, owner string, now time.Time) error {
	// It is shared with earlier states, and so are the sessions.
	if s.Live = maps.Clone(s.GetLive()); s.Live == nil {
		s.Live = map[string]*storev1.LiveSession{}
	}
	maps.DeleteFunc(s.GetLive(), func(_ string, l *storev1.LiveSession) bool { return !now.Before(l.GetExpireTime().AsTime()) })
	id, is := req.GetProviderSessionId(), as[*storev1.LiveSession](req.GetSession())
	l := s.GetLive()[id]
	if is.GetEpoch() < l.GetEpoch() {
		return errFenced
	}
	if s.LiveCounts = proto.CloneOf(s.GetLiveCounts()); s.LiveCounts == nil {
		s.LiveCounts = &storev1.LiveCounts{}
	}
	counts, was := s.GetLiveCounts(), l.GetStatus()
	if l == nil || is.GetEpoch() > l.GetEpoch() {
		was = storev1.LiveStatus_LIVE_STATUS_UNSPECIFIED
	}
	if l == nil {
		if len(s.GetLive()) >= maxLive {
			return errTooManyLive
		}
		l = &storev1.LiveSession{Owner: owner}
	} else {
		l = proto.CloneOf(l)
	}
	if was == storev1.LiveStatus_LIVE_STATUS_UNSPECIFIED {
		l.OpenTime, l.GoAwayTime, l.CloseCode, l.Error = stamp(now), nil, 0, ""
	}
	l.Status, l.Epoch, l.UpdateTime = is.GetStatus(), is.GetEpoch(), stamp(now)
	if is.GetModel() != "" {
		l.Model = is.GetModel()
	}
	ttl := defaultTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	l.ExpireTime = stamp(now.Add(ttl))
	s.Live[id] = l
	first := was != is.GetStatus()
	switch is.GetStatus() {
	case storev1.LiveStatus_LIVE_STATUS_OPEN:
		if first {
			counts.Opened++
		}
	case storev1.LiveStatus_LIVE_STATUS_GOING_AWAY:
		if first {
			counts.GoAways++
		}
		switch {
		case req.GetTimeLeft() != nil:
			l.GoAwayTime = stamp(now.Add(req.GetTimeLeft().AsDuration()))
		case is.GetGoAwayTime() != nil:
			l.GoAwayTime = is.GetGoAwayTime()
		}
	case storev1.LiveStatus_LIVE_STATUS_CLOSED:
		counts.Closed++
		delete(s.Live, id)
	case storev1.LiveStatus_LIVE_STATUS_FAILED:
		l.CloseCode, l.Error = is.GetCloseCode(), is.GetError()
		if first {
			l.Failures++
			counts.Failed++
		}
		counts.LastFailureTime, counts.LastError, counts.LastErrorUser = stamp(now), is.GetError(), l.GetOwner()
	default: // connecting
	}
	return nil
}

// liveSessions counts the sessions that are live now.
func liveSessions(s *storev1.ApiState, now time.Time) (n int32) {
	for _, l := range s.GetLive() {
		if l.GetStatus() != storev1.LiveStatus_LIVE_STATUS_FAILED && now.Before(l.GetExpireTime().AsTime()) {
			n++
		}
	}
	return n
}
