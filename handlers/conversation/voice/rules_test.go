package voice

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// What a client tells a new session of what was said before is no news, and what the user types is.
func TestSeedsAreNoNews(t *testing.T) {
	t.Parallel()
	const (
		users = `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"a"}]}],"turnComplete":true}}`
		both  = `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"x"}]},{"role":"model","parts":[{"text":"y"}]}],"turnComplete":true}}`
		setup = `{"setup":{"historyConfig":{"initialHistoryInClientContent":true}}}`
	)
	for name, tt := range map[string]struct {
		frames []string
		want   []string // the texts of messages after the first
	}{
		"a typed text":             {[]string{users}, []string{"a"}},
		"a seed, ingested":         {[]string{setup, both, users}, []string{"a"}},
		"a seed, not ingested":     {[]string{setup, `{"setupComplete":{}}`, users}, []string{"a"}},
		"the user typed meanwhile": {[]string{typed("y"), both, users}, []string{"y", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.send(t, typed("x"))
			s.take("b")
			s.send(t, tt.frames...)
			var got []string
			for seq := int64(2); seq <= s.state.GetLastSeq(); seq++ {
				got = append(got, s.messages[seq].GetText())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRetelling(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		frames []string
		want   string // the user's messages
	}{
		"from the beginning":               {[]string{in("Set the issue "), "reconnect", in("Set the"), in(" issue to done.")}, "Set the issue to done."},
		"with signs of speech":             {[]string{in("Set the issue "), "reconnect", activityStart, interim("Set"), in("set the issue to done.")}, "Set the issue to done."},
		"cut in the middle of a word":      {[]string{in("Set the iss"), "reconnect", in("Set the issue now")}, "Set the issue now"},
		"punctuation is no difference":     {[]string{in("No, don't"), "reconnect", in("no don’t stop")}, "No, don't stop"},
		"it goes on":                       {[]string{in("Set the "), "reconnect", in("issue to done")}, "Set the issue to done"},
		"it only begins alike":             {[]string{in("the cat and "), "reconnect", in("the "), in("dog")}, "the cat and the dog"},
		"held back, then over":             {[]string{in("the cat and "), "reconnect", in("the "), out("Yes"), turnComplete}, "the cat and the "},
		"all of it, then over":             {[]string{in("the cat "), "reconnect", in("The cat"), out("Yes"), turnComplete}, "the cat "},
		"most of it, then over":            {[]string{in("one two three four "), "reconnect", in("one two three"), out("Yes"), turnComplete}, "one two three four "},
		"a new one of the same beginning":  {[]string{in("the cat"), out("Yes"), turnComplete, activityStart, in("the cat again")}, "the cat|the cat again"},
		"long after it was complete":       {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look at it"), activityStart, in("Yes")}, "Look at it|Yes"},
		"once more, and answered":          {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look at it"), out("Again")}, "Look at it|Look at it"},
		"in pieces":                        {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look "), in("at it")}, "Look at it"},
		"said twice":                       {[]string{activityStart, in("Yes."), activityEnd, out("?"), turnComplete, activityStart, in("Yes."), activityEnd}, "Yes.|Yes."},
		"said twice without signs":         {[]string{in("Yes."), out("?"), turnComplete, in("Yes."), out("?"), turnComplete}, "Yes.|Yes."},
		"once more before the answer":      {[]string{in("Look at it"), in("Look at it")}, "Look at it Look at it"},
		"once more amid the answer":        {[]string{in("Look at it"), out("Yes"), in("Look at it")}, "Look at it"},
		"the same word again and again":    {[]string{in("no no no "), in("no no no ")}, "no no no no no no "},
		"the tail of an utterance is late": {[]string{activityStart, in("the cat and "), activityEnd, in("the "), in("dog"), out("Yes"), turnComplete}, "the cat and the dog"},
		"another script":                   {[]string{in("打开问题"), "reconnect", in("打开问题一")}, "打开问题一"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLiveStore()
			s.send(t, tt.frames...)
			s.do(testNow, func(f *Reducer) { f.CloseLive(1000) })
			var users []string
			for seq := range s.state.GetLastSeq() {
				if m := s.messages[seq+1]; m.GetRole() == storev1.Role_ROLE_USER {
					users = append(users, m.GetText())
				}
			}
			if got := strings.Join(users, "|"); got != tt.want {
				t.Errorf("the user said %q, want %q", got, tt.want)
			}
			s.check(t)
		})
	}
}

func TestAbandoned(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, in("Set "), call("a"))
	s.take("a")
	late := func(frames ...*livev1.LiveFrame) (got *storev1.Fragment) {
		s.do(testNow, func(f *Reducer) { got = f.Abandon(ReadBatch(1, frames, sealed)) })
		s.check(t)
		return got
	}
	got := late(textFrame(1, in("Set ")), textFrame(3, in("it ")), textFrame(4, out("Sure")), textFrame(5, answer("a")))
	want := &storev1.Fragment{Seq: 1, Epoch: 1, FirstClientIndex: 3, LastClientIndex: 5, UserText: "it ", AssistantText: "Sure", CreateTime: timestamppb.New(testNow)}
	same(t, "the fragment", got, want)
	if c := s.calls["a"]; c.GetStatus() != CallCompleted || c.GetResultSeq() != 2 {
		t.Errorf("the response that came with it: %v", c)
	}
	if got := late(textFrame(1, in("Set ")), textFrame(4, out("Sure")), textFrame(5, answer("a"))); got != nil {
		t.Errorf("again: %v", got)
	}
	if got := late(textFrame(6, audio)); got != nil {
		t.Errorf("nothing was said: %v", got)
	}
	same(t, "the next", late(textFrame(7, typed("now"))), &storev1.Fragment{
		Seq: 2, Epoch: 1, FirstClientIndex: 7, LastClientIndex: 7, UserText: "now", CreateTime: timestamppb.New(testNow),
	})
	if got := s.messages[1].GetText(); got != "Set " {
		t.Errorf("the message became %q", got)
	}
}

func TestWhatWasHeardIsEstimated(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, out("One "), interrupted, out("two"), turnComplete, out("Three"), turnComplete)
	if m := s.messages[1]; m.GetHeardText() != "One " || !m.GetHeardEstimated() || m.GetInterruptTime() == nil || m.GetText() != "One two" {
		t.Errorf("interrupted: %v", m)
	}
	if m := s.messages[2]; m.HeardText != nil {
		t.Errorf("not interrupted: %v", m)
	}
}

// Text that the model's transcription replaces was not heard.
func TestWhatWasHeardIsSaid(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, part("As text."), interrupted, out("As speech."))
	s.check(t)
	if m := s.messages[1]; m.GetText() != "As speech." || m.HeardText == nil || m.GetHeardText() != "" || !m.GetHeardEstimated() {
		t.Errorf("%v", m)
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	at := testNow.Add
	aSecond := durationpb.New(time.Second)
	for name, tt := range map[string]struct {
		frames []string
		within *durationpb.Duration
		after  time.Duration
		status storev1.VoiceStatus
		next   time.Duration // 0: none
		want   []string
	}{
		"idle already":              {[]string{"in:Hi", "TC"}, nil, time.Hour, Idle, 0, []string{"user: Hi"}},
		"not yet":                   {[]string{"in:Hi"}, nil, DefaultSilence - 1, Listening, DefaultSilence, []string{"user*: Hi"}},
		"silent":                    {[]string{"in:Hi"}, nil, DefaultSilence, Idle, 0, []string{"user: Hi"}},
		"as the client wants it":    {[]string{"in:Hi"}, aSecond, time.Second, Idle, 0, []string{"user: Hi"}},
		"after an answer":           {[]string{"in:Hi", "AU", "out:Hello.", "GC"}, nil, DefaultSilence, Idle, 0, []string{"user: Hi", "assistant: Hello."}},
		"amid an answer":            {[]string{"in:Hi", "AU", "out:Hello"}, nil, DefaultSilence, Idle, 0, []string{"user: Hi", "assistant: Hello"}},
		"speech that has no end":    {[]string{"VS", "in:Hi"}, nil, DefaultSilence, Idle, 0, []string{"user: Hi"}},
		"after an interruption":     {[]string{"in:Hi", "AU", "out:Hello", "INT", "in:No"}, nil, DefaultSilence, Idle, 0, []string{"user: Hi", "assistant: Hello", "user: No"}},
		"speech without words":      {[]string{"VS", "VE", "AU", "out:Hello."}, nil, DefaultSilence, Idle, 0, []string{"assistant: Hello."}},
		"a tool runs":               {[]string{"call:a"}, nil, time.Hour, Processing, time.Hour + DefaultSilence, []string{"call a pending"}},
		"a tool runs for an answer": {[]string{"in:Go", "out:I start.", "call:a"}, nil, time.Hour, Processing, time.Hour + DefaultSilence, []string{"user*: Go", "assistant*: I start.", "call a pending"}},
		"a tool ran":                {[]string{"call:a", "answer:a"}, nil, time.Hour, Idle, 0, []string{"call a completed"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.state.Live.Silence = tt.within
			s.send(t, shorthands(tt.frames...)...)
			var next time.Time
			s.do(at(tt.after), func(f *Reducer) { next = f.Silent() })
			if got := s.state.GetVoice().GetStatus(); got != tt.status {
				t.Errorf("it is %s", got)
			}
			if tt.next == 0 && !next.IsZero() || tt.next != 0 && !next.Equal(at(tt.next)) {
				t.Errorf("looks again at %v", next)
			}
			if diff := cmp.Diff(tt.want, s.talk()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.next != 0 {
				return
			}
			// What is said next is another turn.
			s.send(t, shorthands("in:And?", "AU", "out:Yes.", "TC")...)
			if diff := cmp.Diff(append(tt.want, "user: And?", "assistant: Yes."), s.talk()); diff != "" {
				t.Errorf("and then (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFleeting(t *testing.T) {
	t.Parallel()
	for frame, want := range map[string]bool{
		interim("Can"): true, activityStart: true, activityEnd: true, audio: true, interim("Can") + activityEnd: true,
		`{"realtimeInput":{"audio":{}}}`: true,
		in("Can"):                        false, out("Yes"): false, turnComplete: false, generated: false, interrupted: false, call("a"): false,
		usage(1, 2): false, typed("x"): false, resumption("h"): false, part("text"): false, interim("Can") + in("Can"): false,
		`{"unknown":{}}`: false, `hello`: false, `{"setup":{}}`: false, `{"goAway":{}}`: false,
		`{"serverContent":{"interimInputTranscription":{"text":"a"},"outputTranscription":{"text":"b"}}}`: false,
	} {
		if got := ReadBatch(1, []*livev1.LiveFrame{textFrame(1, frame)}, sealed).Fleeting; got != want {
			t.Errorf("%s is fleeting: %t", frame, got)
		}
	}
}
