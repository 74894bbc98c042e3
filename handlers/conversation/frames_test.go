package conversation

import (
	"fmt"
	"strings"

	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice/voicetest"
)

// Frames, in few letters.
const (
	activityStart = voicetest.ActivityStart
	activityEnd   = voicetest.ActivityEnd
	audio         = voicetest.Audio
	interrupted   = voicetest.Interrupted
	generated     = voicetest.Generated
	turnComplete  = voicetest.TurnComplete
	turnIdle      = voicetest.TurnIdle
)

func quote(text string) string                             { return voicetest.Quote(text) }
func in(text string) string                                { return voicetest.In(text) }
func interim(text string) string                           { return voicetest.Interim(text) }
func out(text string) string                               { return voicetest.Out(text) }
func call(id string) string                                { return voicetest.Call(id) }
func answer(id string) string                              { return voicetest.Answer(id) }
func resumption(handle string) string                      { return voicetest.Resumption(handle) }
func usage(response, total int) string                     { return voicetest.Usage(response, total) }
func shorthand(frame string) string                        { return voicetest.Short(frame) }
func textFrame(index int64, text string) *livev1.LiveFrame { return voicetest.Text(index, text) }

// shortName is an enum value's name without its type: "listening" of VOICE_STATUS_LISTENING.
func shortName(value fmt.Stringer) string {
	name := value.String()
	return strings.ToLower(name[strings.LastIndexByte(name, '_')+1:])
}
