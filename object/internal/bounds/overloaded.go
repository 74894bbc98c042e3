package bounds

import "time"

// OverloadedError: a bounded queue is full. Nothing was done; trying again after RetryAfter may help.
type OverloadedError struct {
	// What is full: the queue of an "object", a "user", a "tenant" or the "server"; or "streams", "history", "answers" or "work".
	What string
	// Of says whose streams, history, answers or work: those of the "user", the "tenant" or the "server".
	Of         string
	RetryAfter time.Duration
}

func (e *OverloadedError) Error() string {
	if e.Of != "" {
		return "object: too much at once: " + e.What + " of the " + e.Of
	}
	return "object: too much waits for the " + e.What
}
