package load

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
)

// liveTurn is one spoken exchange as the provider sends it: the user's words, the assistant's, and the end of the
// turn. Each %s is a part of a message's text.
var liveTurn = []string{
	`{"voiceActivity":{"voiceActivityType":"ACTIVITY_START"}}`,
	`{"serverContent":{"inputTranscription":{"text":%s}}}`,
	`{"serverContent":{"inputTranscription":{"text":%s}}}`,
	`{"voiceActivity":{"voiceActivityType":"ACTIVITY_END"}}`,
	`{"serverContent":{"modelTurn":{"role":"model","parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AAAAAAAAAAA="}}]}}}`,
	`{"serverContent":{"outputTranscription":{"text":%s}}}`,
	`{"serverContent":{"outputTranscription":{"text":%s}}}`,
	`{"serverContent":{"generationComplete":true}}`,
	`{"serverContent":{"turnComplete":true},"usageMetadata":{"totalTokenCount":100}}`,
	`{"sessionResumptionUpdate":{"newHandle":"h","resumable":true}}`,
}

// Connect begins the session's live connection.
func (s *Session) Connect(ctx context.Context) error {
	var res livev1.ConnectLiveResponse
	if err := s.call(ctx, livev1connect.LiveServiceConnectLiveProcedure, &livev1.ConnectLiveRequest{ConversationId: s.Conversation}, &res); err != nil {
		return err
	}
	s.live.FencingToken = res.GetLease().GetFencingToken()
	return nil
}

// Ingest sends one exchange as a batch of live frames. It makes two messages, the user's and the assistant's.
func (s *Session) Ingest(ctx context.Context, due time.Time) error {
	user, assistant := &conversationv1.Message{}, &conversationv1.Message{}
	first := s.next(user, due)
	s.next(assistant, due)
	parts := make([]string, 0, 4)
	for _, text := range []string{user.GetText(), assistant.GetText()} {
		parts = append(parts, text[:textSize/2], text[textSize/2:])
	}
	index := int32(0)
	if frames := s.live.GetFrames(); len(frames) > 0 {
		index = frames[len(frames)-1].GetClientIndex()
	}
	s.live.Frames = s.live.GetFrames()[:0]
	for _, frame := range liveTurn {
		index++
		s.live.Frames = append(s.live.Frames, &livev1.LiveFrame{
			ClientIndex: index,
			Frame:       &livev1.LiveFrame_Text{Text: fillFrame(frame, &parts)},
		})
	}
	body, err := s.caller.call(ctx, livev1connect.LiveServiceIngestLiveProcedure, s.live)
	if err != nil {
		return err
	}
	var res livev1.IngestLiveResponse
	if err := s.codec.decode(body, &res); err != nil {
		return err
	}
	if res.GetStoredThrough() != index || len(res.GetMessages()) != 2 {
		return fmt.Errorf("a turn of two messages was folded into %d, up to frame %d of %d", len(res.GetMessages()), res.GetStoredThrough(), index)
	}
	for i, m := range res.GetMessages() {
		s.Ledger.Acknowledge(first+i, int64(m.GetSeq()))
	}
	return nil
}

// fillFrame puts the next of parts into a frame that has room for one.
func fillFrame(frame string, parts *[]string) string {
	before, after, ok := strings.Cut(frame, "%s")
	if !ok {
		return frame
	}
	part := strconv.Quote((*parts)[0])
	*parts = (*parts)[1:]
	return before + part + after
}
