package voice

import (
	"strings"
)

// holdsBack keeps words that are those of the last utterance once more, though nobody was heard to speak, and reports whether it did. news
// are all words that are not kept.
func (f *Reducer) holdsBack(words string) (news string, held bool) {
	if f.live.GetUserTurn() != nil || f.live.GetAssistantTurn() != nil || !f.live.GetTellsSpeech() || f.live.GetSpeaking() || f.live.GetAsking() ||
		f.live.GetQuestionSeq() == 0 {
		return words, false
	}
	words = f.live.GetHeldBack() + words
	f.live.HeldBack = ""
	said := f.message(f.live.GetQuestionSeq()).GetText()
	if _, match := matchRetold(said, words); match != retoldSoFar || distinctWords(Canonical(said)) < enoughWords {
		return words, false
	}
	f.live.HeldBack = words
	f.note(ToldAgain, nil, "held back", words)
	return "", true
}

// release decides about words that are held back. They are news where the provider takes them for speech, because it hears its end or
// answers. All of the last utterance, and then another, is a repetition of the provider.
func (f *Reducer) release(isSpeech bool) {
	held := f.live.GetHeldBack()
	if held == "" {
		return
	}
	f.live.HeldBack = ""
	if isSpeech || Canonical(held) != Canonical(f.message(f.live.GetQuestionSeq()).GetText()) {
		f.under(NotToldAgain, func() { f.addHeard(held) })
		return
	}
	f.note(ToldAgain, nil, "left out", held)
}

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
func (f *Reducer) speaks() {
	f.live.SpokeSince = true
	if !f.live.GetReconnected() {
		f.endRetelling()
	}
}

// startRetelling begins a time at which words may be a repetition.
func (f *Reducer) startRetelling() {
	f.live.Retelling = f.live.GetRetelling() || f.told() != ""
}

// told is what may be repeated: the open utterance, or the last one that has no whole answer.
func (f *Reducer) told() string {
	if text := f.live.GetUserTurn().GetText(); text != "" {
		return text
	}
	return f.live.GetLastUtterance()
}

// news is what of some new words is no repetition. It may have words that were held back.
func (f *Reducer) news(words string) string {
	if !f.live.GetRetelling() {
		switch turn := f.live.GetUserTurn(); {
		case !f.repeatsAll(words):
		case f.live.GetAssistantTurn() != nil && !f.live.GetInterrupted() && !f.live.GetSpeaking():
			f.note(RepeatedAll, turn, "left out", words)
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
		f.note(ToldAgain, nil, "held back", words)
		return ""
	case retoldBeyond:
		f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
		f.by(ToldAgain)
		if tail := afterWords(told); strings.HasPrefix(rest, tail) {
			rest = rest[len(tail):]
		} else if strings.HasSuffix(tail, " ") {
			rest = strings.TrimLeft(rest, " ")
		}
		return rest
	default:
		if f.live.GetRetold() != "" {
			f.by(NotToldAgain)
		}
		f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
		return retold
	}
}

// repeatsAll reports whether one piece of words is all of the open utterance once more, though nothing says that the user spoke. The
// utterance may be those words several times.
func (f *Reducer) repeatsAll(words string) bool {
	turn := f.live.GetUserTurn()
	if turn.GetText() == "" || f.live.GetSpokeSince() {
		return false
	}
	open, said := Canonical(turn.GetText()), Canonical(words)
	return open != "" && distinctWords(said) >= enoughWords && isBlank(strings.ReplaceAll(open, said, ""))
}

// endRetelling decides about words that are still held back.
func (f *Reducer) endRetelling() {
	if !f.live.GetRetelling() {
		return
	}
	told, held := Canonical(f.told()), f.live.GetRetold()
	f.live.Retelling, f.live.Reconnected, f.live.Retold = false, false, ""
	said := Canonical(held)
	words := countWords(said)
	// A mark at its end may be the end of what is open.
	mark, open := afterWords(held), f.live.GetUserTurn().GetText()
	switch {
	case said == "":
		if open != "" && !strings.HasSuffix(strings.TrimSpace(open), strings.TrimSpace(mark)) {
			f.addHeard(mark)
		}
	case said == told || words >= enoughWords && 2*words >= countWords(told):
		f.note(ToldAgain, nil, "left out", held)
		if more, goesOn := strings.CutPrefix(mark, afterWords(open)); open != "" && said == told && goesOn {
			f.addHeard(more)
		}
	default:
		f.under(NotToldAgain, func() { f.addHeard(held) })
	}
}
