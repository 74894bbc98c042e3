package conversation

import (
	"errors"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// LiveLimits are what Gemini Live is documented to allow. Providers change them.
type LiveLimits struct {
	// DeveloperHandles and VertexHandles are how long a resumption handle is valid once its session has ended: 2 h for the
	// Developer API (ai.google.dev/gemini-api/docs/live-session); for Vertex AI the documentation says 24 h and, on the
	// same page, about 10 minutes. Default 2 h and 24 h: a handle that is refused costs one connection.
	DeveloperHandles, VertexHandles time.Duration
	// Connection is how long a connection lasts, where no goAway says so. Default 10 minutes.
	Connection time.Duration
}

func (l LiveLimits) withDefaults() LiveLimits {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&l.DeveloperHandles, 2 * time.Hour}, {&l.VertexHandles, 24 * time.Hour}, {&l.Connection, 10 * time.Minute},
	} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	return l
}

func (l LiveLimits) handles(p storev1.LiveProvider) time.Duration {
	if p == storev1.LiveProvider_LIVE_PROVIDER_VERTEX_AI {
		return l.VertexHandles
	}
	return l.DeveloperHandles
}

// connecting is a client that wants to connect.
type connecting struct {
	req    *livev1.ConnectLiveRequest
	caller identity.Identity
	owner  identity.User // of the conversation
	// sessionEnd is when the caller's session ends; zero: there is none.
	sessionEnd time.Time
	id         string // the connection's, if there will be one
	limits     LiveLimits
	// previous is what the last connection still owed, read, and settled what happens between its end and the next beginning.
	previous voice.Batch
	settled  func() error
	// opens reports whether a sealed handle can be opened.
	opens func(sealed []byte) bool
}

// connect takes the conversation over for a new connection. late is what an older one than the last owed; nil: nothing.
func (c *connecting) connect(f *voice.Reducer, s *storev1.ConversationState, now time.Time) (reason livev1.PlanReason, late *storev1.Fragment, err error) {
	w := writer{epoch: int64(c.req.GetPrevious().GetFencingToken()), caller: c.caller, now: now}
	if err := mayConnect(s, w, w.epoch, c.req.GetTakeOver()); err != nil {
		return 0, nil, err
	}
	if w.epoch != 0 {
		if late, err = c.followOn(f, s, w); err != nil {
			return 0, nil, err
		}
	}
	epoch := newestEpoch(s) + 1
	if epoch > math.MaxInt32 {
		return 0, nil, problem.LimitReached("object", "connections", math.MaxInt32, "the conversation has had all connections that have a number; go on in a fork of it", 0)
	}
	provider := storev1.LiveProvider(c.req.GetProvider())
	if provider == storev1.LiveProvider_LIVE_PROVIDER_UNSPECIFIED {
		provider = storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API
	}
	live, o := s.GetLive(), c.req.GetOptions()
	handle, reason := c.handle(live, provider, now)
	goesOn := ""
	if w.epoch == epoch-1 {
		goesOn = live.GetLease().GetConnectionId()
	}
	f.Open(voice.Opening{
		Epoch: epoch, Resumes: handle.GetId(), Device: storedDevice(c.req.GetDevice()), Provider: provider, SetupHash: c.req.GetSetupHash(),
		KeepFrames: o.GetKeepFramesFor(), Silence: o.GetSilence(), LeaveToolCalls: o.GetLeaveToolCalls(), ToolLease: o.GetToolLease(),
		Lease: &storev1.LiveLease{
			ConnectionId: c.id, User: string(c.caller.User), SessionId: c.caller.Session, ExpireTime: leaseEnd(now, c.sessionEnd),
		},
		GoesOn: goesOn,
	})
	return reason, late, nil
}

// followOn folds what the connection before still owed, and ends it. What an older one owed is abandoned.
func (c *connecting) followOn(f *voice.Reducer, s *storev1.ConversationState, w writer) (late *storev1.Fragment, err error) {
	err = issued(s, w.epoch)
	if _, older := errors.AsType[fencedError](err); older {
		return f.Abandon(c.previous), nil
	}
	if err != nil {
		return nil, err
	}
	// Who lost a session goes on in the next, so the session need not be the same, once the lease is free.
	if !ofUser(s.GetLive().GetLease(), c.caller) {
		return nil, fence(s, w)
	}
	if err := f.FinishWith(c.previous, c.req.GetPrevious().PlayedMs); err != nil {
		return nil, err
	}
	if err := c.settled(); err != nil {
		return nil, err
	}
	f.CloseLive(c.req.GetPrevious().GetCloseCode())
	if c.req.GetPrevious().GetHandleRefused() {
		f.RefuseHandle()
	}
	return nil, nil
}

// handle is what the provider's session is resumed with; nil: it is not, and reason says why.
func (c *connecting) handle(live *storev1.LiveState, provider storev1.LiveProvider, now time.Time) (h *storev1.LiveHandle, reason livev1.PlanReason) {
	if live.GetOpenTime() == nil && live.GetEpoch() == 0 {
		return nil, livev1.PlanReason_PLAN_REASON_FIRST
	}
	h = voice.NewestResumable(live.GetHandles())
	switch {
	case h == nil, h.GetSession() != live.GetSession(): // a session that another has followed knows less than the conversation does
		return nil, livev1.PlanReason_PLAN_REASON_NO_HANDLE
	case !mayHave(c.caller, c.owner, h.GetUser()):
		return nil, livev1.PlanReason_PLAN_REASON_NO_HANDLE
	case h.GetDead():
		return nil, livev1.PlanReason_PLAN_REASON_HANDLE_REFUSED
	case h.GetSetupHash() != c.req.GetSetupHash(), h.GetProvider() != provider:
		return nil, livev1.PlanReason_PLAN_REASON_SETUP_CHANGED
	}
	if end := handleExpiry(live, h, now, c.limits); !end.IsZero() && !now.Before(end) {
		return nil, livev1.PlanReason_PLAN_REASON_HANDLE_EXPIRED
	}
	if len(h.GetSealed()) == 0 || !c.opens(h.GetSealed()) { // its key is gone
		return nil, livev1.PlanReason_PLAN_REASON_NO_HANDLE
	}
	return h, livev1.PlanReason_PLAN_REASON_RESUMED
}

// mayHave reports whether a caller may have a secret that a user's connection brought to a conversation of owner.
func mayHave(caller identity.Identity, owner identity.User, user string) bool {
	return caller.Service || user == string(caller.User) || owner != "" && owner == caller.User
}

// handleExpiry is when a handle is over; zero: its connection is open, as far as is known. It counts from when the session
// was last known to live.
func handleExpiry(live *storev1.LiveState, h *storev1.LiveHandle, now time.Time, limits LiveLimits) time.Time {
	if h.GetEpoch() == live.GetEpoch() && live.GetCloseTime() == nil && now.Before(providerCloses(live, limits)) {
		return time.Time{}
	}
	last := h.GetReceiveTime().AsTime()
	for _, t := range []*timestamppb.Timestamp{live.GetFrameTime(), live.GetCloseTime(), live.GetLastCloseTime()} {
		if t != nil && t.AsTime().After(last) {
			last = t.AsTime()
		}
	}
	return last.Add(limits.handles(h.GetProvider()))
}

// providerCloses is when the provider closes the newest connection, by what it said or documents.
func providerCloses(live *storev1.LiveState, limits LiveLimits) time.Time {
	if t := live.GetGoAwayTime(); t != nil {
		return t.AsTime()
	}
	return live.GetOpenTime().AsTime().Add(limits.Connection)
}

const (
	// rotateAhead is how long before the provider closes a connection the client should have left it, and rotateNotice how long
	// before that it is told, where the provider says nothing.
	rotateAhead, rotateNotice = 5 * time.Second, time.Minute
	// Of a failure to resume: doubled with each, up to the greatest.
	firstBackOff, greatestBackOff = 500 * time.Millisecond, 30 * time.Second
)

// rotate tells when to leave the newest connection; nil: it need not be left.
func rotate(s *storev1.ConversationState, now time.Time, limits LiveLimits) *livev1.Rotate {
	live := s.GetLive()
	within := providerCloses(live, limits).Add(-rotateAhead).Sub(now)
	if live.GetCloseTime() != nil || live.GetProvider() == storev1.LiveProvider_LIVE_PROVIDER_NONE || live.GetGoAwayTime() == nil && within > rotateNotice {
		return nil
	}
	if within <= 0 {
		return &livev1.Rotate{Now: true}
	}
	return &livev1.Rotate{Now: atRest(s), Within: durationpb.New(within)}
}

// atRest reports whether a session that is resumed knows all that was said, and nobody is saying more.
func atRest(s *storev1.ConversationState) bool {
	live := s.GetLive()
	n := len(live.GetHandles())
	if n == 0 || live.GetUserTurn() != nil && !live.GetAnswered() || live.GetAssistantTurn() != nil {
		return false
	}
	h := live.GetHandles()[n-1]
	return h.GetResumable() && h.GetEpoch() == live.GetEpoch() && h.GetAfterSeq() == s.GetLastSeq() && h.GetAfterToolCall() == s.GetToolCallCount()
}

// retryTime is when a connection may be tried again after failures to resume; zero: there was none.
func retryTime(live *storev1.LiveState) time.Time {
	n := live.GetResumeFailures()
	if n == 0 {
		return time.Time{}
	}
	wait := greatestBackOff
	if n <= 6 { //nolint:mnd // more doublings are over the greatest
		wait = min(wait, firstBackOff<<(n-1))
	}
	return live.GetResumeFailureTime().AsTime().Add(wait)
}
