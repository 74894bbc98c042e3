// Package gemini is the form in which Gemini is told things and tells them: the frames of the Live API, read, and Contents and seeds,
// written. It keeps what it understands of a frame and counts the rest. It also guesses how many tokens a text has.
package gemini
