package conversation

import (
	"strings"
	"unicode"
)

// Providers transcribe an utterance again: after a connection was lost in the middle of it, or long after it was
// complete. What the user said must not be doubled then, and what he says twice must not be lost.
//
// The evidence is the connection: a provider transcribes again what it was told again, so on a new connection words may be a repetition
// as long as an utterance is open, or has no whole answer. Then words are held back as long as they are those that came before,
// from the beginning. Where they differ they were news all along; where they go beyond, what is beyond is news. Where they
// just end, they were a repetition if they were the whole utterance or half of it, and at least three words, or six letters of a
// script without blanks. An utterance that was answered is not told again: who says the same then says it twice.
//
// On one connection, words are dropped where they are all of the open utterance once more, three different words at least, while its
// answer is being given and nobody was heard to speak. All else is said twice.
//
// What this gets wrong: a user who repeats all of an utterance, without signs of speech, in the middle of its answer, or on a new
// connection before it; and a provider that transcribes again after the answer, or with other words.

const (
	// maxUtterance is the bytes of an utterance that is recognised after it is complete.
	maxUtterance = 4 << 10
	// enoughWords cannot be a coincidence.
	enoughWords = 3
)

// speaks notes a sign that the user speaks. On a new connection it may be of what was said before.
func (f *folder) speaks() {
	f.live.SpokeSince = true
	if !f.live.GetReconnected() {
		f.endRetelling()
	}
}

// startRetelling begins a time at which words may be a repetition.
func (f *folder) startRetelling() {
	f.live.Retelling = f.live.GetRetelling() || f.told() != ""
}

// told is what may be repeated: the open utterance, or the last one that has no whole answer.
func (f *folder) told() string {
	if text := f.live.GetUserTurn().GetText(); text != "" {
		return text
	}
	return f.live.GetLastUtterance()
}

// news is what of some new words is no repetition. It may have words that were held back.
func (f *folder) news(words string) string {
	if !f.live.GetRetelling() {
		switch turn := f.live.GetUserTurn(); {
		case !f.repeatsAll(words):
		case f.live.GetAssistantTurn() != nil && !f.live.GetInterrupted() && !f.live.GetSpeaking():
			return ""
		case parts(turn.GetText(), words):
			return " " + words
		}
		return words
	}
	told, retold := f.told(), f.live.GetRetold()+words
	rest, match := matchRetold(told, retold)
	switch match {
	case retoldSoFar:
		f.live.Retold = retold
		return ""
	case retoldBeyond:
		f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
		if strings.HasSuffix(told, " ") {
			rest = strings.TrimLeft(rest, " ")
		}
		return rest
	default:
		f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
		return retold
	}
}

// repeatsAll reports whether one piece of words is all of the open utterance once more, though nothing says that the user spoke. The
// utterance may be those words several times.
func (f *folder) repeatsAll(words string) bool {
	turn := f.live.GetUserTurn()
	if turn.GetText() == "" || f.live.GetSpokeSince() {
		return false
	}
	said := canonical(words)
	return distinctWords(said) >= enoughWords && isBlank(strings.ReplaceAll(canonical(turn.GetText()), said, ""))
}

// endRetelling decides about words that are still held back.
func (f *folder) endRetelling() {
	if !f.live.GetRetelling() {
		return
	}
	told, held := canonical(f.told()), f.live.GetRetold()
	f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
	said := canonical(held)
	words := countWords(said)
	if said == "" { // a mark, which may be the end of what is open
		if text := f.live.GetUserTurn().GetText(); text != "" && !strings.HasSuffix(strings.TrimSpace(text), strings.TrimSpace(held)) {
			f.addHeard(held)
		}
		return
	}
	if said == told || words >= enoughWords && 2*words >= countWords(told) {
		return
	}
	f.addHeard(held)
}

// retoldMatch is how words compare with what was said before.
type retoldMatch int

const (
	retoldDiffers retoldMatch = iota
	retoldSoFar               // it begins with them
	retoldBeyond              // they begin with it, and go on
)

// matchRetold compares words with what was said before, by letters and digits alone; rest is what goes beyond it.
func matchRetold(told, words string) (rest string, match retoldMatch) {
	want := []rune(canonical(told))
	if len(want) == 0 {
		return "", retoldDiffers
	}
	i, gap, end := 0, false, 0
	for pos, r := range words {
		if !isSaid(r) {
			gap = gap || i > 0 && isGap(r)
			continue
		}
		if i == len(want) {
			return words[end:], retoldBeyond
		}
		if gap {
			if want[i] != ' ' {
				return "", retoldDiffers
			}
			i, gap = i+1, false
		}
		if want[i] != unicode.ToLower(r) {
			return "", retoldDiffers
		}
		i++
		end = pos + len(string(r))
	}
	return "", retoldSoFar
}

// canonical is a text's letters and digits in lower case, with one blank between words.
func canonical(text string) string {
	var b strings.Builder
	gap := false
	for _, r := range text {
		switch {
		case isSaid(r):
			if gap && b.Len() > 0 {
				b.WriteByte(' ')
			}
			gap = false
			b.WriteRune(unicode.ToLower(r))
		case isGap(r):
			gap = true
		}
	}
	return b.String()
}

func isSaid(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) }

// isGap tells whether a character parts words: not an apostrophe.
func isGap(r rune) bool { return r != '\'' && r != '’' }

// lettersPerWord is how many letters count as a word in scripts without blanks.
const lettersPerWord = 2

func countWords(said string) int { return len(words(said)) }

func distinctWords(said string) int {
	seen := map[string]bool{}
	for _, word := range words(said) {
		seen[word] = true
	}
	return len(seen)
}

// words are what a text is made of: what is between blanks, or two letters of a script that has none.
func words(said string) (list []string) {
	for word := range strings.FieldsSeq(said) {
		letters := []rune(word)
		if !solid(letters[0]) {
			list = append(list, word)
			continue
		}
		for len(letters) > 0 {
			n := min(lettersPerWord, len(letters))
			list, letters = append(list, string(letters[:n])), letters[n:]
		}
	}
	return list
}
