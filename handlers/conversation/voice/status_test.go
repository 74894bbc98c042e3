package voice

import (
	"errors"
	"slices"
	"testing"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

const voiceUnset = storev1.VoiceStatus_VOICE_STATUS_UNSPECIFIED

func TestTransition(t *testing.T) {
	t.Parallel()
	type status = storev1.VoiceStatus
	legal := map[status][]status{
		voiceUnset: {voiceUnset, Idle, Listening},
		Idle:       {voiceUnset, Idle, Listening},
		Listening:  {voiceUnset, Idle, Listening, Processing},
		Processing: {voiceUnset, Idle, Listening, Processing, Responding},
		Responding: {voiceUnset, Idle, Listening, Processing, Responding},
	}
	for from, targets := range legal {
		for to := voiceUnset; to <= Responding; to++ {
			err := Transition(from, to)
			if slices.Contains(targets, to) {
				if err != nil {
					t.Errorf("transition(%s, %s) = %v", from, to, err)
				}
				continue
			}
			var illegal IllegalTransitionError
			if !errors.As(err, &illegal) {
				t.Errorf("transition(%s, %s) = %v, want an illegalTransitionError", from, to, err)
				continue
			}
			for _, allowed := range illegal.Allowed {
				if Transition(from, allowed) != nil {
					t.Errorf("the error for %s to %s allows %s, which is illegal", from, to, allowed)
				}
			}
		}
	}
}

func TestTransitionNamesTheLegalOnes(t *testing.T) {
	t.Parallel()
	got := Transition(voiceUnset, Responding).Error()
	want := "the voice turn cannot go from VOICE_STATUS_IDLE to VOICE_STATUS_RESPONDING, only to VOICE_STATUS_LISTENING"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	// What each signal makes of each status: first alone, then while the user speaks over the model.
	type row = [5]storev1.VoiceStatus
	const u, i, l, p, r = voiceUnset, Idle, Listening, Processing, Responding
	from := row{u, i, l, p, r}
	tests := []struct {
		name   string
		signal voiceSignal
		want   row
		over   row
	}{
		{"speechStarted", speechStarted, row{l, l, l, l, l}, row{l, l, l, l, l}},
		{"speechEnded", speechEnded, row{p, p, p, p, r}, row{p, p, p, p, r}},
		{"wordsHeard", wordsHeard, row{l, l, l, p, r}, row{l, l, l, p, r}},
		{"modelSpoke", modelSpoke, row{r, r, r, r, r}, row{i, i, l, p, r}},
		{"modelCalledTools", modelCalledTools, row{p, p, p, p, p}, row{i, i, l, p, r}},
		{"modelInterrupted", modelInterrupted, row{l, l, l, l, l}, row{l, l, l, l, l}},
		{"modelWaits", modelWaits, row{l, l, l, l, l}, row{l, l, l, l, l}},
		{"turnOver", turnOver, row{i, i, i, i, i}, row{i, i, l, p, r}},
		{"turnOverIdle", turnOverIdle, row{i, i, i, i, i}, row{i, i, i, i, i}},
		{"turnOverInProgress", turnOverInProgress, row{p, p, p, p, p}, row{p, p, p, p, p}},
		{"modelLost", modelLost, row{i, i, l, i, i}, row{i, i, l, i, i}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for n, status := range from {
				if got := follow(status, test.signal, false); got != test.want[n] {
					t.Errorf("from %s: got %s, want %s", status, got, test.want[n])
				}
				if got := follow(status, test.signal, true); got != test.over[n] {
					t.Errorf("from %s, spoken over: got %s, want %s", status, got, test.over[n])
				}
			}
		})
	}
}
