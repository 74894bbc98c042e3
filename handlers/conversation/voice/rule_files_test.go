package voice

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// The example of a rule, testdata/rules/RULE.txt, has frames in few letters (see voicetest.Short), one a line, and below them what they lead
// to, which -update writes. SILENCE is the time that ends what is open, FILL is as many words of the model as a message has room for.

// playRule folds a rule's frames, and returns what they led to, and why.
func playRule(t *testing.T, lines []string) (transcript, explained []string, rules map[Rule]bool) {
	t.Helper()
	tr := NewTranscript()
	tr.Connect(testNow)
	rules = map[Rule]bool{}
	tr.Report = func(e Effect) {
		rules[e.Rule] = true
		text := e.String()
		if len(text) > 100 {
			text = text[:60] + "…"
		}
		explained = append(explained, fmt.Sprintf("    %s: %s", e.Rule, text))
	}
	for _, line := range lines {
		explained = append(explained, line)
		switch line {
		case "OPEN":
			tr.Connect(testNow)
		case "SILENCE":
			tr.Do(testNow.Add(DefaultSilence), func(r *Reducer) { r.Silent() })
		case "FILL":
			line = "out:" + strings.Repeat("word ", maxSpokenText/len("word "))
			fallthrough
		default:
			if err := tr.Fold(testNow, textFrame(tr.State.GetLive().GetLastClientIndex()+1, shorthand(line))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, line := range tr.Lines() {
		if len(line) > 100 {
			line = line[:60] + "…"
		}
		transcript = append(transcript, line)
	}
	return transcript, explained, rules
}

func TestRules(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/rules/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if rule := Rule(strings.TrimSuffix(filepath.Base(file), ".txt")); rule.Why() == "" {
			t.Errorf("%s is an example of no rule", file)
		}
	}
	for rule := range why {
		t.Run(string(rule), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join("testdata", "rules", string(rule)+".txt")
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			frames, _, _ := strings.Cut(string(want), "\n\n")
			transcript, explained, rules := playRule(t, strings.Split(strings.TrimSuffix(frames, "\n"), "\n"))
			if !rules[rule] {
				t.Errorf("the example does not use the rule: %s", rule.Why())
			}
			got := fmt.Sprintf("%s\n\n# Transcript\n%s\n\n# By frame\n%s\n", strings.TrimSuffix(frames, "\n"), strings.Join(transcript, "\n"), strings.Join(explained, "\n"))
			if *updateGolden {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", rule, rule.Why(), diff)
			}
		})
	}
}

// What a frame does is told only to who asks, and telling changes nothing.
func TestTellingWhyChangesNothing(t *testing.T) {
	t.Parallel()
	frames := []*livev1.LiveFrame{}
	for i, f := range []string{"VS", "in:Go", "VE", "AU", "out:One", "INT", "in:No.", "TC", "call:a"} {
		frames = append(frames, textFrame(int64(i+1), shorthand(f)))
	}
	told, silent := NewTranscript(), NewTranscript()
	told.Report = func(Effect) {}
	for _, tr := range []*Transcript{told, silent} {
		tr.Connect(testNow)
		if err := tr.Fold(testNow, frames...); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(silent.Lines(), told.Lines()); diff != "" {
		t.Errorf("(-silent +told):\n%s", diff)
	}
}
