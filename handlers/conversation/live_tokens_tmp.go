package conversation

import "unicode/utf8"

// estimateTokens is a quarter of the characters, rounded up.
func estimateTokens(text string) int64 {
	return (int64(utf8.RuneCountInString(text)) + 3) / 4
}
