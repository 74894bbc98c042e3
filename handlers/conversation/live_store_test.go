package conversation

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
)

var testNow = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// liveStore is a conversation that is folded in memory.
type liveStore struct {
	*voice.Transcript

	state    *storev1.ConversationState
	messages map[int64]*storev1.Message
}

func newLiveStore() *liveStore {
	t := voice.NewTranscript()
	return &liveStore{t, t.State, t.Messages}
}

// opens is a conversation that some devices opened in turn.
func opens(setups ...string) *liveStore {
	s := newLiveStore()
	for _, hash := range setups {
		s.take(hash)
	}
	return s
}

// take connects. A session is resumed where it can be.
func (s *liveStore) take(setupHash string) {
	o := voice.Opening{Epoch: s.state.GetLive().GetEpoch() + 1, SetupHash: setupHash, Provider: storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API, LeaveToolCalls: true}
	for _, h := range s.state.GetLive().GetHandles() {
		if h.GetResumable() && !h.GetDead() && h.GetSession() == s.state.GetLive().GetSession() && h.GetSetupHash() == setupHash {
			o.Resumes = h.GetId()
		}
	}
	s.Do(testNow, func(r *voice.Reducer) { r.Open(o) })
}

func (s *liveStore) do(now time.Time, rule func(*voice.Reducer)) { s.Do(now, rule) }

// send folds frames of JSON one by one; "reconnect" begins the next connection.
func (s *liveStore) send(t *testing.T, frames ...string) {
	t.Helper()
	for _, frame := range frames {
		if s.state.GetLive().GetEpoch() == 0 {
			s.take("")
		}
		if frame == "reconnect" {
			s.take(s.state.GetLive().GetSetupHash())
			continue
		}
		if err := s.Fold(testNow, textFrame(s.state.GetLive().GetLastClientIndex()+1, frame)); err != nil {
			t.Fatal(err)
		}
	}
}

const voiceUnset = storev1.VoiceStatus_VOICE_STATUS_UNSPECIFIED

func outputOf(text string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"output": structpb.NewStringValue(text)}}
}
