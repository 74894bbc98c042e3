//go:build race

package handlers_test

// raceDetector is true under the race detector, which makes a test ten times slower that moves many megabytes.
const raceDetector = true
