//go:build race

package handlers_test

// raceDetector is true under the race detector, which makes tests up to ten times slower. What tries very many inputs tries a few of them
// there, and what moves many megabytes none: CI runs all of this package again without it, through PgBouncer.
const raceDetector = true
