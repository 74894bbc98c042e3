package conversation

import (
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

const (
	// maxHandles are the updates of session resumption that are kept.
	maxHandles = 4
	// maxGoAway bounds what a provider may say of the time that is left.
	maxGoAway = time.Hour
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

// begin begins a new connection. The user may be in the middle of an utterance, which goes on in it. A turn of the
// model does not: it ended with the connection, and the utterance that it answered ended before.
func (f *folder) begin(epoch int64) {
	if old := f.live.GetEpoch(); old != 0 {
		f.disconnect()
		f.rememberFenced(old)
	}
	f.live.Epoch, f.live.LastClientIndex = epoch, 0
	f.live.LastCloseTime = f.live.GetCloseTime()
	f.live.OpenTime, f.live.CloseTime, f.live.CloseCode, f.live.GoAwayTime = f.now, nil, 0, nil
	f.live.Device, f.live.SessionId = nil, ""
	f.live.CallsBefore = f.state.GetToolCallCount()
	f.forgetAnswer()
	f.live.QuestionSeq, f.live.OwesEnd, f.live.OwesCut, f.live.Speaking, f.live.PartialCalls = 0, false, false, false, nil
	f.startRetelling()
	f.live.Reconnected = f.live.GetRetelling()
}

// disconnect ends what cannot outlive a connection.
func (f *folder) disconnect() {
	f.endRetelling()
	f.release(false)
	if turn := f.live.GetAssistantTurn(); turn != nil {
		f.signal(modelLost)
		f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED)
		f.live.Asked = true // the next connection goes on with the answer
	}
	if f.live.GetUserTurn() != nil && (f.live.GetAnswered() || f.live.GetUserTurn().GetCreateTime() == nil) {
		f.endUtterance()
	}
	f.orphanCalls()
}

// rememberFenced keeps how far an older connection was folded, so that what it sends yet can be told from that.
func (f *folder) rememberFenced(epoch int64) {
	if f.live.FencedIndexes == nil {
		f.live.FencedIndexes = map[int64]int64{}
	}
	f.live.FencedIndexes[epoch] = max(f.live.GetFencedIndexes()[epoch], f.live.GetLastClientIndex())
	for len(f.live.GetFencedIndexes()) > maxFenced {
		delete(f.live.FencedIndexes, slices.Min(slices.Collect(maps.Keys(f.live.GetFencedIndexes()))))
	}
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
	previous liveBatch
	settled  func() error
	// opens reports whether a sealed handle can be opened.
	opens func(sealed []byte) bool
}

// connect takes the conversation over for a new connection. late is what an older one than the last owed; nil: nothing.
func (f *folder) connect(c *connecting) (reason livev1.PlanReason, late *storev1.Fragment, err error) {
	w := writer{epoch: int64(c.req.GetPrevious().GetFencingToken()), caller: c.caller, now: f.now.AsTime()}
	if err := mayConnect(f.state, w, w.epoch, c.req.GetTakeOver()); err != nil {
		return 0, nil, err
	}
	if w.epoch != 0 {
		if late, err = f.followOn(w, c); err != nil {
			return 0, nil, err
		}
	}
	epoch := newestEpoch(f.state) + 1
	if epoch > math.MaxInt32 {
		return 0, nil, problem.LimitReached("object", "connections", math.MaxInt32, "the conversation has had all connections that have a number; go on in a fork of it", 0)
	}
	provider := storev1.LiveProvider(c.req.GetProvider())
	if provider == storev1.LiveProvider_LIVE_PROVIDER_UNSPECIFIED {
		provider = storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API
	}
	handle, reason := f.handle(c, provider)
	before := f.live.GetLease()
	f.begin(epoch)
	if f.live.ResumedHandleId = handle.GetId(); handle == nil {
		f.live.Session++
	}
	o := c.req.GetOptions()
	f.live.Device, f.live.Provider, f.live.SetupHash = storedDevice(c.req.GetDevice()), provider, c.req.GetSetupHash()
	f.live.KeepFrames, f.live.Silence = o.GetKeepFramesFor(), o.GetSilence()
	f.live.LeaveToolCalls, f.live.ToolLease = o.GetLeaveToolCalls(), o.GetToolLease()
	f.live.Lease = &storev1.LiveLease{
		ConnectionId: c.id, User: string(c.caller.User), SessionId: c.caller.Session, ExpireTime: leaseEnd(w.now, c.sessionEnd),
	}
	goesOn := ""
	if w.epoch == epoch-1 {
		goesOn = before.GetConnectionId()
	}
	f.claimOwed(goesOn)
	return reason, late, nil
}

// followOn folds what the connection before still owed, and ends it. What an older one owed is abandoned.
func (f *folder) followOn(w writer, c *connecting) (late *storev1.Fragment, err error) {
	err = issued(f.state, w.epoch)
	if _, older := errors.AsType[fencedError](err); older {
		return f.abandon(c.previous), nil
	}
	if err != nil {
		return nil, err
	}
	// Who lost a session goes on in the next, so the session need not be the same, once the lease is free.
	if !ofUser(f.live.GetLease(), c.caller) {
		return nil, fence(f.state, w)
	}
	if err := c.previous.checkIndexes("previous.frames", f.live.GetLastClientIndex()); err != nil {
		return nil, err
	}
	f.foldBatch(c.previous)
	f.played(c.req.GetPrevious().PlayedMs)
	if err := c.settled(); err != nil {
		return nil, err
	}
	f.closeLive(c.req.GetPrevious().GetCloseCode())
	if c.req.GetPrevious().GetHandleRefused() {
		f.refuseHandle()
	}
	return nil, nil
}

// handle is what the provider's session is resumed with; nil: it is not, and reason says why.
func (f *folder) handle(c *connecting, provider storev1.LiveProvider) (h *storev1.LiveHandle, reason livev1.PlanReason) {
	if f.live.GetOpenTime() == nil && f.live.GetEpoch() == 0 {
		return nil, livev1.PlanReason_PLAN_REASON_FIRST
	}
	h = newestResumable(f.live.GetHandles())
	switch {
	case h == nil, h.GetSession() != f.live.GetSession(): // a session that another has followed knows less than the conversation does
		return nil, livev1.PlanReason_PLAN_REASON_NO_HANDLE
	case !mayHave(c.caller, c.owner, h.GetUser()):
		return nil, livev1.PlanReason_PLAN_REASON_NO_HANDLE
	case h.GetDead():
		return nil, livev1.PlanReason_PLAN_REASON_HANDLE_REFUSED
	case h.GetSetupHash() != c.req.GetSetupHash(), h.GetProvider() != provider:
		return nil, livev1.PlanReason_PLAN_REASON_SETUP_CHANGED
	}
	if end := handleExpiry(f.live, h, f.now.AsTime(), c.limits); !end.IsZero() && !f.now.AsTime().Before(end) {
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

// closeLive notes that the newest connection has ended, and gives its lease back. It returns false where that was known.
func (f *folder) closeLive(code int32) bool {
	if f.live.GetCloseTime() != nil {
		return false
	}
	f.disconnect()
	f.live.CloseTime, f.live.CloseCode, f.live.GoAwayTime = f.now, code, nil
	if f.live.GetLease() != nil {
		f.live.Lease.ExpireTime = f.now
	}
	return true
}

// refuseHandle kills the handle that the newest connection resumes with, and those that are older: they know less than it does.
func (f *folder) refuseHandle() {
	i := slices.IndexFunc(f.live.GetHandles(), func(h *storev1.LiveHandle) bool { return h.GetId() == f.live.GetResumedHandleId() })
	if i < 0 || f.live.GetHandles()[i].GetDead() {
		return
	}
	for _, h := range f.live.GetHandles()[:i+1] {
		h.Dead, h.Sealed = true, nil
	}
	f.live.ResumeFailures++
	f.live.ResumeFailureTime = f.now
}

// foldSession folds what a frame tells of the session itself.
func (f *folder) foldSession(m *liveFrame) {
	if m.Setup != nil {
		f.setUp(m.Setup)
	}
	if m.SetupComplete != nil {
		f.live.SessionId = firstBytes(string(m.SetupComplete.SessionID), maxName)
		f.live.ResumeFailures, f.live.ResumeFailureTime = 0, nil
	}
	if m.GoAway != nil {
		f.goAway(string(m.GoAway.TimeLeft))
	}
	if m.SessionResumptionUpdate != nil {
		f.noteHandle(m.SessionResumptionUpdate)
	}
}

// setUp reads how the client in fact began the session.
func (f *folder) setUp(s *sessionSetup) {
	if !s.SessionResumption.Handle && f.live.GetResumedHandleId() != 0 {
		f.live.Session++
		f.live.ResumedHandleId = 0
	}
}

func (f *folder) goAway(left string) {
	d, err := time.ParseDuration(left)
	if err != nil {
		d = 0 // it will close, and did not say when: treat it as now
	}
	f.live.GoAwayTime = timestamppb.New(f.now.AsTime().Add(min(max(d, 0), maxGoAway)))
}

// noteHandle keeps an update of session resumption. Only the newest resumable one has its secret; of those in a row that
// are not resumable the first is kept, which tells since when.
func (f *folder) noteHandle(u *resumptionUpdate) {
	resumable := u.Resumable && len(u.sealed) > 0
	handles := f.live.GetHandles()
	if n := len(handles); !resumable && n > 0 && !handles[n-1].GetResumable() && handles[n-1].GetEpoch() == f.live.GetEpoch() {
		return
	}
	f.live.HandleCount++
	h := &storev1.LiveHandle{
		Id: f.live.GetHandleCount(), Epoch: f.live.GetEpoch(), Session: f.live.GetSession(), Resumable: resumable,
		SetupHash: f.live.GetSetupHash(), Provider: f.live.GetProvider(), ReceiveTime: f.now,
		LastConsumedClientIndex: max(int64(u.LastConsumed), 0), AfterSeq: f.state.GetLastSeq(), AfterToolCall: f.state.GetToolCallCount(),
		User: f.live.GetLease().GetUser(),
	}
	if resumable {
		h.Sealed = u.sealed
		for _, old := range handles {
			old.Sealed = nil
		}
	}
	handles = append(handles, h)
	if len(handles) > maxHandles {
		oldest := 0
		if newest := newestResumable(handles); newest == handles[0] {
			oldest = 1
		}
		handles = slices.Delete(handles, oldest, oldest+1)
	}
	f.live.Handles = handles
}

func newestResumable(handles []*storev1.LiveHandle) *storev1.LiveHandle {
	for _, h := range slices.Backward(handles) {
		if h.GetResumable() {
			return h
		}
	}
	return nil
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

// abandon keeps what an older connection sent after it was replaced: what was said becomes a fragment, which is nil where
// there is nothing new, and responses to its tool calls are told as text.
func (f *folder) abandon(batch liveBatch) *storev1.Fragment {
	known := f.live.GetFencedIndexes()[batch.epoch]
	if batch.epoch == f.live.GetEpoch() { // nobody has connected since
		known = max(known, f.live.GetLastClientIndex())
	}
	if batch.checkIndexes("frames", known) != nil {
		return nil
	}
	fragment := &storev1.Fragment{Epoch: batch.epoch, CreateTime: f.now}
	for i := range batch.frames {
		frame := &batch.frames[i]
		if frame.index <= known {
			continue
		}
		known = frame.index
		if fragment.GetFirstClientIndex() == 0 {
			fragment.FirstClientIndex = frame.index
		}
		fragment.LastClientIndex = frame.index
		for j := range frame.messages {
			f.abandonMessage(fragment, &frame.messages[j])
		}
	}
	if f.live.FencedIndexes == nil {
		f.live.FencedIndexes = map[int64]int64{}
	}
	if known > f.live.GetFencedIndexes()[batch.epoch] {
		f.live.FencedIndexes[batch.epoch] = known
	}
	for len(f.live.GetFencedIndexes()) > maxFenced {
		delete(f.live.FencedIndexes, slices.Min(slices.Collect(maps.Keys(f.live.GetFencedIndexes()))))
	}
	if fragment.GetUserText() == "" && fragment.GetAssistantText() == "" || f.state.GetFragmentCount() >= maxFragments {
		return nil
	}
	f.state.FragmentCount++
	fragment.Seq = f.state.GetFragmentCount()
	return fragment
}

func (f *folder) abandonMessage(fragment *storev1.Fragment, m *liveFrame) {
	user, assistant := "", ""
	if c := m.ServerContent; c != nil {
		user, assistant = string(c.InputTranscription.Text), string(c.OutputTranscription.Text)
		if c.ModelTurn != nil && assistant == "" {
			assistant = c.ModelTurn.text()
		}
	}
	if m.RealtimeInput != nil {
		user += string(m.RealtimeInput.Text)
	}
	fragment.UserText = firstBytes(fragment.GetUserText()+user, maxFragmentText)
	fragment.AssistantText = firstBytes(fragment.GetAssistantText()+assistant, maxFragmentText)
	if m.ToolResponse == nil {
		return
	}
	for _, response := range m.ToolResponse.FunctionResponses {
		if f.live.GetPendingCalls()[string(response.ID)].GetEpoch() == fragment.GetEpoch() && !response.WillContinue {
			f.answerCall(response)
		}
	}
}

const (
	maxFragments    = 1000
	maxFragmentText = 16 << 10
)
