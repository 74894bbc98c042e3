package voice

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// maxFenced is how many older connections are kept, of which the last frame is known.
const maxFenced = 8

// MaxHandles are the updates of session resumption that are kept.
const MaxHandles = 4

// maxGoAway bounds what a provider may say of the time that is left.
const maxGoAway = time.Hour

// Opening is how a connection begins.
type Opening struct {
	Epoch int64
	// resumes is the handle that the provider's session is resumed with; 0: it is a new session.
	Resumes             int64
	Device              *storev1.Device
	Provider            storev1.LiveProvider
	SetupHash           string
	KeepFrames, Silence *durationpb.Duration
	LeaveToolCalls      bool
	ToolLease           *durationpb.Duration
	Lease               *storev1.LiveLease
	// goesOn is the connection that this one goes on from; empty: none.
	GoesOn string
}

// Open begins a new connection. The user may be in the middle of an utterance, which goes on in it. A turn of the
// model does not: it ended with the connection, and the utterance that it answered ended before.
func (f *Reducer) Open(o Opening) {
	if old := f.live.GetEpoch(); old != 0 {
		f.disconnect()
		f.rememberFenced(old)
	}
	f.live.Epoch, f.live.LastClientIndex = o.Epoch, 0
	f.live.LastCloseTime = f.live.GetCloseTime()
	f.live.OpenTime, f.live.CloseTime, f.live.CloseCode, f.live.GoAwayTime = f.now, nil, 0, nil
	f.live.SessionId, f.live.CallsBefore = "", f.state.GetToolCallCount()
	f.forgetAnswer()
	f.live.QuestionSeq, f.live.OwesEnd, f.live.OwesCut, f.live.Speaking, f.live.PartialCalls = 0, false, false, false, nil
	f.live.SpeechStart, f.live.SpeechEnd = nil, nil
	f.startRetelling()
	f.live.Reconnected = f.live.GetRetelling()
	if f.live.ResumedHandleId = o.Resumes; o.Resumes == 0 {
		f.live.Session++
		f.live.Setup = nil
	}
	f.live.Device, f.live.Provider, f.live.SetupHash = o.Device, o.Provider, o.SetupHash
	f.live.KeepFrames, f.live.Silence = o.KeepFrames, o.Silence
	f.live.LeaveToolCalls, f.live.ToolLease, f.live.Lease = o.LeaveToolCalls, o.ToolLease, o.Lease
	f.claimOwed(o.GoesOn)
}

// FinishWith folds the frames that a connection still owes, without claiming the calls in them.
func (f *Reducer) FinishWith(batch Batch, playedMs *int32) error {
	if err := batch.CheckIndexes("previous.frames", f.live.GetLastClientIndex()); err != nil {
		return err
	}
	f.FoldBatch(batch)
	f.played(playedMs)
	return nil
}

// disconnect ends what cannot outlive a connection.
func (f *Reducer) disconnect() {
	f.by(Connection)
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
func (f *Reducer) rememberFenced(epoch int64) {
	if f.live.FencedIndexes == nil {
		f.live.FencedIndexes = map[int64]int64{}
	}
	f.live.FencedIndexes[epoch] = max(f.live.GetFencedIndexes()[epoch], f.live.GetLastClientIndex())
	for len(f.live.GetFencedIndexes()) > maxFenced {
		delete(f.live.FencedIndexes, slices.Min(slices.Collect(maps.Keys(f.live.GetFencedIndexes()))))
	}
}

// CloseLive notes that the newest connection has ended, and gives its lease back. It returns false where that was known.
func (f *Reducer) CloseLive(code int32) bool {
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

// RefuseHandle kills the handle that the newest connection resumes with, and those that are older: they know less than it does.
func (f *Reducer) RefuseHandle() {
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
func (f *Reducer) foldSession(m *gemini.Message) {
	if m.Setup != nil {
		f.setUp(m.Setup)
	}
	if m.ContextUpdate != "" {
		f.updateContext(m.ContextUpdate)
	}
	if m.SetupComplete != nil {
		f.live.SessionId = gemini.FirstBytes(string(m.SetupComplete.SessionID), gemini.MaxName)
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
func (f *Reducer) setUp(s *gemini.SessionSetup) {
	if !s.SessionResumption.Handle && f.live.GetResumedHandleId() != 0 {
		f.live.Session++
		f.live.ResumedHandleId = 0
	}
	f.live.Setup = &storev1.LiveSetup{
		Model: gemini.FirstBytes(string(s.Model), gemini.MaxName), TargetLanguage: gemini.FirstBytes(s.Target(), maxLanguage),
		ContextSha256: contextDigest(s.SystemInstruction, s.Tools), ContextTime: f.now,
	}
	for _, m := range s.GenerationConfig.ResponseModalities[:min(len(s.GenerationConfig.ResponseModalities), maxModalities)] {
		f.live.Setup.ResponseModalities = append(f.live.Setup.ResponseModalities, gemini.FirstBytes(string(m), maxLanguage))
	}
}

// maxModalities are the modalities of a setup that are kept.
const maxModalities = 4

// updateContext notes that the model was told other instructions, or has other tools.
func (f *Reducer) updateContext(update gemini.Digest) {
	if f.live.Setup == nil {
		f.live.Setup = &storev1.LiveSetup{}
	}
	f.live.Setup.ContextSha256 = contextDigest(gemini.Digest(f.live.GetSetup().GetContextSha256()), update)
	f.live.Setup.ContextUpdates++
	f.live.Setup.ContextTime = f.now
	f.tell(nil, "the model is told something else", "")
}

// contextDigest is the digest of all that a model was told.
func contextDigest(parts ...gemini.Digest) string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q", parts)))
}

func (f *Reducer) goAway(left string) {
	d, err := time.ParseDuration(left)
	if err != nil {
		d = 0 // it will close, and did not say when: treat it as now
	}
	f.live.GoAwayTime = timestamppb.New(f.now.AsTime().Add(min(max(d, 0), maxGoAway)))
}

// noteHandle keeps an update of session resumption. Only the newest resumable one has its secret; of those in a row that
// are not resumable the first is kept, which tells since when.
func (f *Reducer) noteHandle(u *gemini.ResumptionUpdate) {
	resumable := u.Resumable && len(u.Sealed) > 0
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
		h.Sealed = u.Sealed
		for _, old := range handles {
			old.Sealed = nil
		}
	}
	handles = append(handles, h)
	if len(handles) > MaxHandles {
		oldest := 0
		if newest := NewestResumable(handles); newest == handles[0] {
			oldest = 1
		}
		handles = slices.Delete(handles, oldest, oldest+1)
	}
	f.live.Handles = handles
}

// NewestResumable is the newest handle that a session can be resumed with, or nil.
func NewestResumable(handles []*storev1.LiveHandle) *storev1.LiveHandle {
	for _, h := range slices.Backward(handles) {
		if h.GetResumable() {
			return h
		}
	}
	return nil
}
