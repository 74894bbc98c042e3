//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// readPatience is how long a body may take, and some seconds for a busy machine; writePatience the same for taking an answer.
	readPatience  = 10*time.Second + 8*time.Second
	writePatience = 30*time.Second + 15*time.Second
)

// TestNothingOutlivesItsDeadline has callers begin what they do not finish, in every protocol and with every credential. The server
// ends each request in time, although its caller stays.
func TestNothingOutlivesItsDeadline(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("half a minute, in which nothing is done")
	}
	f := prepare(t)
	server := f.serve(t, nil)
	type stall struct {
		name     string
		patience time.Duration
		run      func(*attacker) string
	}
	var stalls []stall
	for name, c := range map[string]*call{
		"a health check":                    {path: healthCheck},
		"a health check in gRPC":            {path: healthCheck, kind: contentGRPC},
		"reflection":                        {path: reflection, kind: contentGRPC},
		"reflection in Connect":             {path: reflection, kind: contentConnect},
		"a path that is not there":          {path: "/nothing"},
		"readiness":                         {path: "/readyz"},
		"no credential":                     {path: conversations + "Append"},
		"a wrong credential":                {path: conversations + "Append", token: "wrong"},
		"a user's key":                      {path: conversations + "Append", token: f.keys[bobA]},
		"a user's key, protobuf":            {path: conversations + "Append", token: f.keys[bobA], kind: contentProto},
		"a user's key, gRPC":                {path: conversations + "Append", token: f.keys[bobA], kind: contentGRPC},
		"a user's key, gRPC-web":            {path: conversations + "Append", token: f.keys[bobA], kind: "application/grpc-web+proto"},
		"a user's key, gzip":                {path: conversations + "Append", token: f.keys[bobA], header: map[string]string{"Content-Encoding": "gzip"}},
		"a user's key, no such RPC":         {path: conversations + "NoSuchRpc", token: f.keys[bobA]},
		"a user's key, no such type":        {path: conversations + "Append", token: f.keys[bobA], kind: "text/plain"},
		"a service's key":                   {path: sessions + "CreateSession", token: f.keys[serviceA]},
		"a session's token":                 {path: conversations + "GetConversation", token: f.params["access"]},
		"a refresh token":                   {path: sessions + "RefreshSession", token: f.params["refresh"]},
		"a JWT":                             {path: conversations + "GetConversation", token: f.jwt(t, "k1", "dora")},
		"a stream":                          {path: watchRPC, token: f.keys[bobA], kind: contentConnect},
		"a stream in gRPC":                  {path: watchRPC, token: f.keys[bobA], kind: contentGRPC},
		"a webhook of nobody":               {path: webhooks + strings.Repeat("a", 26)},
		"an unsigned webhook":               {path: f.params["webhook"]},
		"a webhook with a wrong signature":  {path: f.params["webhook"], header: map[string]string{"Linear-Signature": strings.Repeat("ab", 32)}},
		"a call that expects to be told on": {path: conversations + "Append", token: f.keys[bobA], header: map[string]string{"Expect": "100-continue"}},
	} {
		for how, one := range map[string]func(a *attacker) string{
			"nothing":   func(a *attacker) string { return a.stall(c, 1000, 0, 0) },
			"some":      func(a *attacker) string { return a.stall(c, 100_000, 5000, 0) },
			"by drops":  func(a *attacker) string { return a.stall(c, 100_000, 10, 250*time.Millisecond) },
			"by chunks": func(a *attacker) string { return a.stall(c, -1, 10, 250*time.Millisecond) },
			"in HTTP/2": func(a *attacker) string { return a.try(a.client(true), with(c, &unfinished{a: a, left: 100})) },
			"an envelope": func(a *attacker) string {
				return a.try(a.client(true), with(c, io.MultiReader(bytes.NewReader(enveloped(0, 1<<20, nil)), &unfinished{a: a, left: 100})))
			},
		} {
			patience := readPatience
			if strings.HasPrefix(name, "reflection") {
				patience = writePatience // whose streams have no other end
			}
			stalls = append(stalls, stall{name + ", " + how, patience, one})
		}
	}
	page := `{"conversationId":"fat","pageSize":200}`
	watch := []byte(`{"items":[{"itemId":"i","conversation":{"conversationId":"fat","messageLimit":200}}]}`)
	for name, one := range map[string]func(a *attacker) string{
		"an answer that is not read": func(a *attacker) string {
			return a.ignore(&call{path: conversations + "ListMessages", token: f.keys[bobA]}, page)
		},
		"a stream that is not read": func(a *attacker) string {
			return a.ignore(&call{path: watchRPC, token: f.keys[bobA], kind: contentConnect}, string(enveloped(0, len(watch), watch)))
		},
		"an answer without a window": func(a *attacker) string {
			return a.ignoreFrames(&call{path: conversations + "ListMessages", token: f.keys[bobA]}, []byte(page))
		},
		"a stream without a window": func(a *attacker) string {
			return a.ignoreFrames(&call{path: watchRPC, token: f.keys[bobA], kind: contentConnect}, enveloped(0, len(watch), watch))
		},
		"a head that never ends": func(a *attacker) string {
			conn, err := a.dial(0)
			if err != nil {
				return err.Error()
			}
			_, _ = io.WriteString(conn, "GET /readyz HTTP/1.1\r\nHost: x\r\n")
			return a.answer(conn)
		},
		"a connection that says nothing": func(a *attacker) string {
			conn, err := a.dial(0)
			if err != nil {
				return err.Error()
			}
			return a.answer(conn)
		},
	} {
		stalls = append(stalls, stall{name, writePatience, one})
	}
	var wait sync.WaitGroup
	for _, s := range stalls { // all at once: each waits for its end
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), s.patience)
			defer cancel()
			a := newAttacker()
			a.ctx, a.url, a.API = ctx, server.url(t), server.api
			if out := s.run(a); strings.HasSuffix(out, outcomeHeld) {
				t.Errorf("%s: after %v the server still waits (%s)", s.name, s.patience, out)
			}
		})
	}
	wait.Wait()
}

func with(c *call, body io.Reader) *call {
	out := *c
	out.body = body
	return &out
}
