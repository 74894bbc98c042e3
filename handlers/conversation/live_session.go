package conversation

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

const (
	// maxHandles are the updates of session resumption that are kept.
	maxHandles = 4
	// maxGoAway bounds what a provider may say of the time that is left.
	maxGoAway = time.Hour
	// untold is the resumed_handle_id of a connection of which nobody told whether it resumes.
	untold = -1
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

// connect begins a new connection. The user may be in the middle of an utterance, which goes on in it. A turn of the
// model does not: it ended with the connection, and the utterance that it answered ended before.
func (f *folder) connect(epoch int64) {
	if old := f.live.GetEpoch(); old != 0 {
		f.disconnect()
		f.rememberFenced(old)
	}
	f.live.Epoch, f.live.LastClientIndex, f.live.FrameCount, f.live.ByteCount = epoch, 0, 0, 0
	f.live.Fence, f.live.LastCloseTime = 0, f.live.GetCloseTime()
	f.live.OpenTime, f.live.CloseTime, f.live.CloseCode, f.live.GoAwayTime = f.now, nil, 0, nil
	f.live.Device, f.live.SessionId, f.live.Seeding = "", "", false
	f.live.CallsBefore = f.state.GetToolCallCount()
	f.startRetelling()
	f.live.Reconnected = f.live.GetRetelling()
}

// connectUntold begins a connection that its first frames announce.
func (f *folder) connectUntold(epoch int64) {
	f.connect(epoch)
	f.live.ResumedHandleId = untold
	if f.live.GetSession() == 0 {
		f.live.Session, f.live.ResumedHandleId = 1, 0
	}
}

// disconnect ends what cannot outlive a connection.
func (f *folder) disconnect() {
	f.endRetelling()
	if f.live.GetAssistantTurn() != nil {
		f.signal(modelLost)
		f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED)
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

// open takes the conversation over for a new connection, under the fence of the floor that it has; 0: it has none.
func (f *folder) open(req *conversationv1.OpenLiveRequest, under int64, limits LiveLimits) {
	provider := req.GetProvider()
	if provider == storev1.LiveProvider_LIVE_PROVIDER_UNSPECIFIED {
		provider = storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API
	}
	handle := usableHandle(f.live, req.GetSetupHash(), f.now.AsTime(), limits)
	if handle.GetProvider() != provider {
		handle = nil
	}
	f.connect(max(f.live.GetEpoch()+1, f.state.GetIssuedBefore()+1, f.state.GetFloor().GetFence()))
	f.live.Fence = under
	f.live.Device, f.live.Provider, f.live.SetupHash = req.GetDevice(), provider, req.GetSetupHash()
	f.live.KeepFrames, f.live.Silence = req.GetKeepFramesFor(), req.GetSilence()
	if f.live.ResumedHandleId = handle.GetId(); handle == nil {
		f.startFresh(req.GetSeeding())
	}
}

// startFresh notes that the newest connection begins a new session of the provider.
func (f *folder) startFresh(seeding bool) {
	f.live.Session++
	f.live.ResumedHandleId = 0
	f.live.Seeding = seeding && f.state.GetLastSeq() > 0
}

// closeLive notes that the newest connection has ended. It returns false where that was known.
func (f *folder) closeLive(code int32) bool {
	if f.live.GetCloseTime() != nil {
		return false
	}
	f.disconnect()
	f.live.CloseTime, f.live.CloseCode, f.live.GoAwayTime = f.now, code, nil
	return true
}

// resumeFailed kills a handle, and those that are older: they know less than it does. It returns false where it was dead.
func (f *folder) resumeFailed(handleID int64, seeding bool) bool {
	i := slices.IndexFunc(f.live.GetHandles(), func(h *storev1.LiveHandle) bool { return h.GetId() == handleID })
	if i < 0 || f.live.GetHandles()[i].GetDead() {
		return false
	}
	for _, h := range f.live.GetHandles()[:i+1] {
		h.Dead, h.Sealed = true, nil
	}
	f.live.ResumeFailures++
	f.live.ResumeFailureTime = f.now
	if f.live.GetHandles()[i].GetSession() == f.live.GetSession() {
		f.orphanCalls()
		f.startFresh(seeding)
	}
	return true
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
		f.startFresh(f.live.GetSeeding())
	}
	if s.HistoryConfig.InClientContent && f.state.GetLastSeq() > 0 {
		f.live.Seeding = true
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

// usableHandle is what a session with this setup can be resumed with now, or nil. A session that another has followed is
// not resumed: it knows less than the conversation does.
func usableHandle(live *storev1.LiveState, setupHash string, now time.Time, limits LiveLimits) *storev1.LiveHandle {
	h := newestResumable(live.GetHandles())
	switch {
	case h == nil, h.GetDead(), len(h.GetSealed()) == 0:
		return nil
	case h.GetSession() != live.GetSession(), h.GetSetupHash() != setupHash:
		return nil
	}
	if end := handleExpiry(live, h, now, limits); !end.IsZero() && !now.Before(end) {
		return nil
	}
	return h
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

// resumePlan is what a client should do now, but for the secret and the seed.
type resumePlan struct {
	handle   *storev1.LiveHandle // nil: start fresh
	expires  time.Time           // zero: its connection is open
	wait     bool
	waitTill time.Time
	retry    time.Time // zero: at once
}

const (
	// rotateAhead is how long before the provider closes a connection the client should leave it.
	rotateAhead = 5 * time.Second
	// Of a failure to resume: doubled with each, up to the greatest.
	firstBackOff, greatestBackOff = 500 * time.Millisecond, 30 * time.Second
)

// plan says what a client with this setup should do; an empty hash stands for that of the newest connection.
func plan(s *storev1.ConversationState, setupHash string, now time.Time, limits LiveLimits) resumePlan {
	live, toolCalls := s.GetLive(), s.GetToolCallCount()
	if setupHash == "" {
		setupHash = live.GetSetupHash()
	}
	p := resumePlan{handle: usableHandle(live, setupHash, now, limits), retry: retryTime(live)}
	if !p.retry.After(now) {
		p.retry = time.Time{}
	}
	if p.handle != nil {
		p.expires = handleExpiry(live, p.handle, now, limits)
	}
	if live.GetEpoch() == 0 || live.GetCloseTime() != nil {
		return p
	}
	handles := live.GetHandles()
	p.wait = toolCalls > max(live.GetCallsBefore(), newestResumable(handles).GetAfterToolCall()) || live.GetAssistantTurn() != nil
	if n := len(handles); n > 0 && handles[n-1].GetEpoch() == live.GetEpoch() && !handles[n-1].GetResumable() {
		p.wait = true // resuming now would lose what it does
	}
	if p.wait {
		p.waitTill = providerCloses(live, limits).Add(-rotateAhead)
	}
	if p.wait && !now.Before(p.waitTill) {
		p.wait, p.waitTill = false, time.Time{}
	}
	return p
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
	if batch.epoch == f.live.GetEpoch() { // it lost the floor, and nobody has connected since
		known = max(known, f.live.GetLastClientIndex())
	}
	if batch.checkIndexes(known) != nil {
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

// presentLive is where the newest connection stands; nil: there was none.
func presentLive(live *storev1.LiveState) *conversationv1.LiveStatus {
	if live.GetEpoch() == 0 {
		return nil
	}
	return &conversationv1.LiveStatus{
		Epoch: live.GetEpoch(), Device: live.GetDevice(), Provider: live.GetProvider(), Session: live.GetSession(),
		SessionId: live.GetSessionId(), OpenTime: live.GetOpenTime(), CloseTime: live.GetCloseTime(), CloseCode: live.GetCloseCode(),
		GoAwayTime: live.GetGoAwayTime(), LastClientIndex: live.GetLastClientIndex(), UnknownFrames: live.GetUnknownFrames(),
		TotalTokens: live.GetTotalTokens(), FrameCount: live.GetFrameCount(), ByteCount: live.GetByteCount(),
	}
}
