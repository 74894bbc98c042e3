package voice

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// unfinished reports whether words may go on where a text ends: it is no whole sentence, they are not the same once more, and nothing
// says that a word begins where another should have ended.
func unfinished(text, words string) bool {
	return !endsSentence(text) && !parts(text, words) && Canonical(text) != Canonical(words)
}

// isWhole reports whether a text may be all of an utterance: a blank at its end says that it goes on.
func isWhole(text string) bool { return text != "" && !strings.HasSuffix(text, " ") }

// endsSentence reports whether a text ends with the mark that ends a sentence.
func endsSentence(text string) bool {
	last, _ := utf8.DecodeLastRuneInString(strings.TrimRight(text, " \n\"'”’»)」』"))
	return strings.ContainsRune(".?!…。？！｡؟۔।॥።", last)
}

// parts reports whether a blank has to part two pieces of text that are whole segments: in a script that has blanks between words,
// and where there is none.
func parts(text, words string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	first, _ := utf8.DecodeRuneInString(words)
	return text != "" && words != "" && !unicode.IsSpace(last) && (unicode.IsLetter(first) || unicode.IsDigit(first)) && !solid(first) && !solid(last)
}

// solid reports whether a character is of a script that is written without blanks between words.
func solid(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar, unicode.Tibetan) ||
		'\u3000' <= r && r <= '\u303f' || '\uff00' <= r && r <= '\uff65'
}

// midWord reports whether words go on with the word that a text ends with.
func midWord(text, words string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	first, _ := utf8.DecodeRuneInString(words)
	return unicode.IsLetter(last) && unicode.IsLower(first)
}

func isBlank(words string) bool { return strings.TrimSpace(words) == "" }

// retoldMatch is how words compare with what was said before.
type retoldMatch int

const (
	retoldDiffers retoldMatch = iota
	retoldSoFar               // it begins with them
	retoldBeyond              // they begin with it, and go on
)

// matchRetold compares words with what was said before, by letters and digits alone; rest is what goes beyond it.
func matchRetold(told, words string) (rest string, match retoldMatch) {
	want := []rune(Canonical(told))
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

// Canonical is a text's letters and digits in lower case, with one blank between words.
func Canonical(text string) string {
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

// afterWords is what follows the last letter or digit of a text.
func afterWords(text string) string {
	end := 0
	for pos, r := range text {
		if isSaid(r) {
			end = pos + utf8.RuneLen(r)
		}
	}
	return text[end:]
}

func isSaid(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) }

// isGap reports whether a character parts words: not an apostrophe.
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
