//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/encoding/protowire"
)

// abuse is one way to cost a server more than it should.
type abuse struct {
	name     string
	by, what string // for the table: who does it, and what
	bound    string // for the table: what bounds it
	env      map[string]string
	// bystanders are others than the usual ones, whose calls are measured.
	bystanders func(t *testing.T, f *battlefield, api string) []*bystander
	// attack runs in a process of its own until its context ends.
	attack func(*attacker)
	// refused are the beginnings of outcomes, one of which must be among those of the attack. None: it need not be refused.
	refused []string
}

const (
	stranger = "a stranger"
	oneUser  = "one user"
	twoUsers = "two users"
)

// stalledSize is the Content-Length of stalled requests. They send all of it except the last byte.
const stalledSize = 4<<20 - 10

func abuses() []*abuse {
	var all []*abuse
	for _, c := range []struct {
		name, by, what, key string
		call                *call
	}{
		{"stalled health checks", stranger, "64 unfinished bodies of 4 MiB, health check", "", &call{path: healthCheck}},
		{"stalled reflection", stranger, "the same, reflection", "", &call{path: reflection, kind: contentGRPC}},
		{"stalled calls without a credential", stranger, "the same, an RPC", "", &call{path: conversations + "Append"}},
		{"stalled webhooks of nobody", stranger, "the same, a webhook's path that is not there", "", &call{path: webhooks + "aaaaaaaaaaaaaaaaaaaaaaaaaa"}},
		{"stalled appends", oneUser, "64 unfinished bodies of 4 MiB", bobA, &call{path: conversations + "Append"}},
		{"stalled streams", oneUser, "64 streams whose first message of 4 MiB never ends", bobA, &call{path: watchRPC, kind: contentConnect}},
	} {
		all = append(all, &abuse{
			name: c.name, by: c.by, what: c.what, bound: "bytes being read at once, 10 s to read",
			attack: func(a *attacker) {
				a.expect(64)
				a.hold(64, func(int) {
					for a.ctx.Err() == nil { // who is cut comes again
						one := *c.call
						one.token = a.Keys[c.key]
						a.count(a.stall(&one, stalledSize, stalledSize-1, time.Second))
						pause(a.ctx, 200*time.Millisecond)
					}
				})
			},
		})
	}
	all = append(all, &abuse{ //nolint:gocritic // by groups
		name: "stalled appends in HTTP/2", by: oneUser, what: "512 unfinished bodies of 64 KiB in HTTP/2", bound: "calls of a user, bytes being read at once",
		attack: func(a *attacker) {
			client := a.client(true)
			n := a.size(256, 512)
			a.expect(n / 2)
			a.hold(n, func(int) {
				for a.ctx.Err() == nil {
					a.send(client, &call{path: conversations + "Append", token: a.Keys[bobA], body: &unfinished{a: a, left: 64 << 10}})
					pause(a.ctx, 200*time.Millisecond)
				}
			})
		},
	}, &abuse{
		name: "calls without bodies by one user", by: oneUser, what: "3,200 calls over 4 HTTP/2 connections whose bodies never come", bound: "calls of a user",
		attack: unfinishedCalls(3200, bobA), refused: []string{"429 OVERLOADED"},
	}, &abuse{
		name: "calls without bodies by two users", by: twoUsers, what: "the same, two users of different tenants", bound: "calls of a user",
		attack: unfinishedCalls(4400, bobA, annB), refused: []string{"429 OVERLOADED"},
	}, &abuse{
		name: "calls without bodies and credential", by: stranger, what: "3,200 calls over 4 HTTP/2 connections whose bodies never come, no credential", bound: "refused from their headers",
		attack: unfinishedCalls(3200, ""), refused: []string{"401 CREDENTIAL_MISSING"},
	})

	// Compression.
	all = append(all, &abuse{
		name: "gzip bombs without a credential", by: stranger, what: "4 MB of gzip that unpack to 4 GB, health check", bound: "nothing is unpacked without a credential",
		attack: bombs("", 6, 4<<30, healthCheck, conversations+"Append"),
	}, &abuse{
		name: "gzip bombs in capital letters", by: stranger, what: "64 at once of 99 KB of gzip that unpack to 100 MB, health check; headers in other spellings", bound: "headers are read as Connect reads them",
		attack: func(a *attacker) {
			body := bomb(100 << 20)
			kinds := []string{"Application/Json", "application/json ;charset=UTF-8", "APPLICATION/PROTO", "Application/Grpc+Proto", "application/Connect+json"}
			a.loop(64, func(i int) {
				a.send(a.client(false), &call{
					path: healthCheck, kind: kinds[i%len(kinds)], body: bytes.NewReader(body),
					header: map[string]string{"Content-Encoding": "gzip", "Grpc-Encoding": "gzip", "Connect-Content-Encoding": "gzip"},
				})
			})
		},
	}, &abuse{
		name: "gzip bombs", by: oneUser, what: "4 MB of gzip that unpack to 4 GB", bound: "unpacking ends at the limit of the RPC",
		attack: bombs(bobA, 6, 4<<30, conversations+"Append"),
	}, &abuse{
		name: "many small gzip bombs", by: oneUser, what: "64 at once of 99 KB that unpack to 100 MB", bound: "bytes being read at once, unpacking takes turns",
		attack: bombs(bobA, 64, 100<<20, conversations+"Append"),
	})

	// Large messages. What they may not store is found out before it has cost much.
	const n = 1_300_000
	for _, c := range []struct {
		name, what, path, kind string
		body                   func(n int) []byte
	}{
		{"structs of empty objects", "16 at once of a Struct of 1,300,000 empty objects, JSON", conversations + "Append", contentJSON, func(n int) []byte {
			return []byte(`{"conversationId":"deep","flowSteps":[{"flow":"f","step":"s","data":{"a":[{}` + strings.Repeat(`,{}`, n-1) + `]}}]}`)
		}},
		{"structs of empty objects in protobuf", "the same, protobuf", conversations + "Append", contentProto, func(n int) []byte {
			list := bytes.Repeat([]byte{0x0a, 2, 0x2a, 0}, n/2) // ListValue.values: {struct_value: {}}
			value := protowire.AppendBytes([]byte{0x32}, list)
			entry := append([]byte{0x0a, 1, 'a', 0x12}, protowire.AppendVarint(nil, uint64(len(value)))...)
			entry = append(entry, value...)
			data := protowire.AppendBytes([]byte{0x0a}, entry)
			step := protowire.AppendBytes([]byte("\x12\x01f\x1a\x01s\x22"), data)
			return protowire.AppendBytes([]byte("\x1a\x04deep\x32"), step)
		}},
		{"structs of many fields", "16 at once of a Struct of 350,000 fields", conversations + "Append", contentJSON, func(n int) []byte {
			var b strings.Builder
			b.WriteString(`{"conversationId":"deep","flowSteps":[{"flow":"f","step":"s","data":{"":0`)
			for i := range n / 4 {
				fmt.Fprintf(&b, `,"%d":0`, i)
			}
			b.WriteString(`}}]}`)
			return []byte(b.String())
		}},
		{"many empty messages", "16 at once of an append of 1,300,000 empty messages", conversations + "Append", contentJSON, func(n int) []byte {
			return []byte(`{"conversationId":"deep","messages":[{}` + strings.Repeat(`,{}`, n-1) + `]}`)
		}},
		{"many empty messages in protobuf", "the same, protobuf", conversations + "Append", contentProto, func(n int) []byte {
			return append([]byte("\x1a\x04deep"), bytes.Repeat([]byte{0x22, 0}, 2*n-10)...)
		}},
		{"many labels", "16 at once of 350,000 labels", conversations + "CreateConversation", contentJSON, func(n int) []byte {
			var b strings.Builder
			b.WriteString(`{"conversation":{"labels":{"":""`)
			for i := range n / 4 {
				fmt.Fprintf(&b, `,"%d":""`, i)
			}
			b.WriteString(`}}}`)
			return []byte(b.String())
		}},
		{"unknown fields", "16 at once of 3.9 MB of fields that the RPC does not have", conversations + "GetConversation", contentJSON, func(n int) []byte {
			return []byte(`{"zzz":[{}` + strings.Repeat(`,{}`, n-1) + `]}`)
		}},
		{"deep nesting", "16 at once of 1,900,000 nested lists", conversations + "Append", contentJSON, func(n int) []byte {
			return []byte(`{"conversationId":"deep","flowSteps":[{"flow":"f","step":"s","data":{"a":` + strings.Repeat(`[`, n*3/2) + strings.Repeat(`]`, n*3/2) + `}}]}`)
		}},
	} {
		all = append(all, &abuse{
			name: c.name, by: oneUser, what: c.what, bound: "the body's limit, values counted while they are decoded",
			refused: []string{"400", "413", "429"},
			attack: func(a *attacker) {
				body := c.body(n)
				client := a.client(false)
				a.loop(16, func(int) {
					a.send(client, &call{path: c.path, token: a.Keys[bobA], kind: c.kind, body: bytes.NewReader(body)})
				})
			},
		})
	}
	all = append(all, &abuse{ //nolint:gocritic // by groups
		name: "structs within the limit", by: oneUser, what: "16 at once of the largest Struct of empty objects that a body limit of 512 KiB lets in", bound: "values counted while they are decoded",
		attack: func(a *attacker) {
			body := []byte(`{"conversationId":"deep","flowSteps":[{"flow":"f","step":"s","data":{"a":[{}` + strings.Repeat(`,{}`, 170_000) + `]}}]}`)
			client := a.client(false)
			a.loop(16, func(int) {
				a.send(client, &call{path: conversations + "Append", token: a.Keys[bobA], body: bytes.NewReader(body)})
			})
		},
	})

	// Answers.
	all = append(all, &abuse{
		name: "unread answers", by: oneUser, what: "64 pages of 200 large messages that nobody reads", bound: "answers end at 2 MiB, 30 s to take one",
		attack: func(a *attacker) {
			a.expect(64)
			a.hold(64, func(int) {
				for a.ctx.Err() == nil {
					a.unread(&call{path: conversations + "ListMessages", token: a.Keys[bobA]}, `{"conversationId":"fat","pageSize":200}`)
				}
			})
		},
	}, &abuse{
		name: "unread answers in HTTP/2", by: oneUser, what: "the same, 4 HTTP/2 connections that open no window", bound: "answers end at 2 MiB, 30 s to take one",
		attack: func(a *attacker) {
			a.expect(4)
			a.hold(4, func(int) {
				f, err := a.h2()
				a.arrive()
				if err != nil {
					return
				}
				for range 16 {
					if _, err := f.open(&call{path: conversations + "ListMessages", token: a.Keys[bobA]}, []byte(`{"conversationId":"fat","pageSize":200}`)); err != nil {
						return
					}
				}
				f.read()
			})
		},
	}, &abuse{
		name: "unread health", by: stranger, what: "4,000 streams of liveness, readiness and health checks over HTTP/2 connections whose window is 0", bound: "answers of strangers, 30 s to take one",
		attack: func(a *attacker) {
			n, per := a.size(1000, 4000), 250
			a.expect(n / per)
			a.hold(n/per, func(int) {
				for a.ctx.Err() == nil {
					f, err := a.h2(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
					a.arrive()
					if err != nil {
						pause(a.ctx, 200*time.Millisecond)
						continue
					}
					for i := range per {
						c, body := &call{method: http.MethodGet, path: "/readyz"}, []byte{}
						if i%2 == 1 {
							c, body = &call{path: healthCheck}, []byte(`{}`)
						}
						if _, err := f.open(c, body); err != nil {
							break
						}
					}
					f.read()
				}
			})
		},
	}, &abuse{
		name: "unread streams", by: oneUser, what: "64 watches from the beginning of 12.7 MB that nobody reads", bound: "catch-ups come in pieces of 2 MiB, 30 s to take one",
		attack: func(a *attacker) {
			a.expect(64)
			a.hold(64, func(int) {
				body := []byte(`{"items":[{"itemId":"i","conversation":{"conversationId":"fat","messageLimit":200}}]}`)
				a.unread(&call{path: watchRPC, token: a.Keys[bobA], kind: contentConnect}, string(enveloped(0, len(body), body)))
			})
		},
	}, &abuse{
		name: "large pages", by: oneUser, what: "64 clients that read pages of 200 large messages", bound: "answers end at 2 MiB, their reads take turns",
		attack: func(a *attacker) {
			client := a.client(false)
			a.loop(64, func(int) {
				a.send(client, &call{path: conversations + "ListMessages", token: a.Keys[bobA], body: strings.NewReader(`{"conversationId":"fat","pageSize":200}`)})
			})
		},
	}, &abuse{
		name: "large windows", by: oneUser, what: "64 clients that ask for context windows of 2,000,000 tokens", bound: "answers end at 2 MiB, their reads take turns",
		attack: func(a *attacker) {
			client := a.client(false)
			a.loop(64, func(int) {
				a.send(client, &call{path: conversations + "GetContextWindow", token: a.Keys[bobA], body: strings.NewReader(`{"conversationId":"fat","budgetTokens":2000000}`)})
			})
		},
	})

	// The past.
	for _, c := range []struct{ name, method, body string }{
		{"reads of the past", "GetObject", `{"ref":{"kind":"conversation","objectId":"deep"},"at":{"version":"1"}}`},
		{"differences with the past", "DiffObject", `{"ref":{"kind":"conversation","objectId":"deep"},"from":{"version":"1"},"to":{"version":"100"}}`},
		{"restored objects", "RestoreObject", `{"ref":{"kind":"conversation","objectId":"deep"},"at":{"version":"%d"}}`},
	} {
		all = append(all, &abuse{
			name: c.name, by: oneUser, what: "32 clients of " + c.method + " on 12,000 messages", bound: "calls of history, 2 of a tenant and 4 of a server", refused: []string{"429"},
			attack: func(a *attacker) {
				client := a.client(false)
				a.loop(32, func(i int) {
					body := c.body
					if strings.Contains(body, "%d") {
						body = fmt.Sprintf(body, 100+i)
					}
					a.send(client, &call{path: inspector + c.method, token: a.Keys[bobA], body: strings.NewReader(body)})
				})
			},
		})
	}

	// Streams and connections.
	all = append(all, &abuse{ //nolint:gocritic // by groups
		name: "streams", by: oneUser, what: "12,000 watches with one key", bound: "streams of a user", refused: []string{"200 OVERLOADED"},
		attack: func(a *attacker) {
			n, per := a.size(3000, 12_000), 500
			a.expect(n)
			a.hold(n/per, func(int) {
				client := a.client(true)
				a.hold(per, func(int) {
					body := []byte(`{"items":[{"itemId":"i","conversation":{"conversationId":"deep"}}]}`)
					a.stream(client, &call{path: watchRPC, token: a.Keys[bobA], kind: contentConnect, body: bytes.NewReader(enveloped(0, len(body), body))})
				})
			})
		},
		bystanders: func(t *testing.T, f *battlefield, api string) []*bystander { return []*bystander{f.watcher(t, api)} },
	}, &abuse{
		name: "reflection streams", by: stranger, what: "5,600 streams of reflection", bound: "streams of reflection",
		attack: func(a *attacker) {
			n, per := a.size(2000, 5600), 400
			a.expect(n * 9 / 10)
			a.hold(n/per, func(int) {
				client := a.client(true)
				a.hold(per, func(int) {
					a.send(client, &call{path: reflection, kind: contentGRPC, body: &unfinished{a: a}})
				})
			})
		},
	}, &abuse{
		name: "idle connections", by: stranger, what: "5,000 connections that say nothing", bound: "10 s for a head",
		attack: func(a *attacker) {
			n := a.size(2000, 5000)
			a.expect(n)
			a.hold(n, func(int) {
				conn, err := a.dial(0)
				a.arrive()
				if err != nil {
					a.count(err.Error())
					return
				}
				defer conn.Close()
				_, _ = io.Copy(io.Discard, conn)
				a.count(a.broken())
			})
		},
	}, &abuse{
		name: "slow heads", by: stranger, what: "2,000 connections that send a line of their head a second", bound: "10 s for a head",
		attack: func(a *attacker) {
			n := a.size(1000, 2000)
			a.expect(n)
			a.hold(n, func(int) {
				conn, err := a.dial(0)
				a.arrive()
				if err != nil {
					a.count(err.Error())
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "POST "+healthCheck+" HTTP/1.1\r\nHost: x\r\n")
				go func() {
					for n := 0; a.ctx.Err() == nil; n++ {
						if _, err := fmt.Fprintf(conn, "X-%d: y\r\n", n); err != nil {
							return
						}
						pause(a.ctx, time.Second)
					}
				}()
				_, _ = io.Copy(io.Discard, conn)
				a.count(a.broken())
			})
		},
	}, &abuse{
		name: "reset streams", by: stranger, what: "16 HTTP/2 connections that open and reset streams as fast as they can", bound: "a connection whose calls are mostly taken back is closed",
		attack: func(a *attacker) {
			a.loop(16, func(int) {
				f, err := a.h2()
				if err != nil {
					return
				}
				go f.read()
				for a.ctx.Err() == nil {
					stream, err := f.open(&call{path: healthCheck}, nil)
					if err == nil {
						f.mu.Lock()
						err = f.WriteRSTStream(stream, http2.ErrCodeCancel)
						f.mu.Unlock()
					}
					if err != nil {
						a.count(outcomeCut)
						return
					}
				}
			})
		},
	})

	// Floods.
	all = append(all, &abuse{
		name: "health checks", by: stranger, what: "64 clients of readiness, liveness and health checks", bound: "an answer is remembered for a second",
		attack: func(a *attacker) {
			client := a.client(false)
			a.loop(64, func(i int) {
				switch i % 3 {
				case 0:
					a.send(client, &call{method: http.MethodGet, path: "/readyz"})
				case 1:
					a.send(client, &call{method: http.MethodGet, path: "/healthz"})
				default:
					a.send(client, &call{path: healthCheck, body: strings.NewReader(`{}`)})
				}
			})
		},
	}, &abuse{
		name: "refused calls", by: stranger, what: "64 clients without a credential, in a loop", bound: "refused from their headers; logs are sampled", refused: []string{"401"},
		attack: func(a *attacker) {
			client := a.client(false)
			a.loop(64, func(i int) {
				path := conversations + "GetConversation"
				if i%2 == 1 {
					path = fmt.Sprint("/no/such/path/", i)
				}
				a.send(client, &call{path: path, body: strings.NewReader(`{}`)})
			})
		},
	}, &abuse{
		name: "invalid calls", by: oneUser, what: "64 clients whose calls are refused for their contents", bound: "logs are sampled", refused: []string{"400", "404"},
		attack: func(a *attacker) {
			client := a.client(false)
			a.loop(64, func(i int) {
				body := `{"conversationId":"none"}`
				if i%2 == 1 {
					body = `{"conversationId":"?"}`
				}
				a.send(client, &call{path: conversations + "GetConversation", token: a.Keys[bobA], body: strings.NewReader(body)})
			})
		},
	}, &abuse{
		name: "wrong credentials", by: stranger, what: "32 clients with wrong keys, tokens of sessions and JWTs", bound: "look-ups of what has failed wait; good ones pass", refused: []string{"401", "429 AUTH_BACKOFF"},
		attack: wrongCredentials,
		bystanders: func(t *testing.T, f *battlefield, api string) []*bystander {
			return []*bystander{
				appender(t, api, "a session", f.params["access"]), appender(t, api, "a user with a JWT", f.jwt(t, "k1", "dora")),
				appender(t, api, "the service", f.keys[serviceA]),
			}
		},
	}, &abuse{
		name: "unsigned webhooks", by: stranger, what: "20 unsigned webhooks with slow bodies, to an endpoint whose id is known", bound: "the signature's form is checked before the body is read",
		attack: func(a *attacker) {
			a.expect(20)
			a.hold(20, func(i int) {
				for a.ctx.Err() == nil {
					c := &call{path: a.Params["webhook"]}
					if i%2 == 1 { // of the right form
						c.header = map[string]string{"Linear-Signature": strings.Repeat("ab", 32)}
					}
					a.count(a.stall(c, 1<<20, 1<<10, 100*time.Millisecond))
					pause(a.ctx, 50*time.Millisecond)
				}
			})
		},
		bystanders: func(t *testing.T, f *battlefield, api string) []*bystander { return []*bystander{f.linear(t, api)} },
	}, &abuse{
		name: "large webhooks", by: stranger, what: "64 webhooks of 1 MiB with wrong signatures", bound: "bytes being read at once",
		attack: func(a *attacker) {
			a.expect(64)
			a.hold(64, func(int) {
				for a.ctx.Err() == nil {
					c := &call{path: a.Params["webhook"], header: map[string]string{"Linear-Signature": strings.Repeat("ab", 32)}}
					a.count(a.stall(c, 1<<20, 1<<20-1, time.Second))
					pause(a.ctx, 50*time.Millisecond)
				}
			})
		},
		bystanders: func(t *testing.T, f *battlefield, api string) []*bystander { return []*bystander{f.linear(t, api)} },
	})

	// What is stored, and where everybody waits.
	all = append(all, &abuse{
		name: "many objects", by: oneUser, what: "64 clients that make conversations with 64 labels each", bound: "quotas of objects and bytes of a user, here 500 objects",
		env: map[string]string{"HOLDFAST_USER_OBJECTS": "500"}, refused: []string{"429 QUOTA_EXCEEDED"},
		attack: func(a *attacker) {
			client := a.client(false)
			labels := make([]string, 64)
			for i := range labels {
				labels[i] = fmt.Sprintf(`"label-%d":%q`, i, strings.Repeat("v", 64))
			}
			body := `{"conversation":{"labels":{` + strings.Join(labels, ",") + `}}}`
			a.loop(64, func(int) {
				for a.send(client, &call{path: conversations + "CreateConversation", token: a.Keys[bobA], body: strings.NewReader(body)}) == "200" {
				}
			})
		},
	}, &abuse{
		name: "one crowded object", by: oneUser, what: "3,200 appends at once to one conversation", bound: "waiting changes of an object and a user",
		attack: func(a *attacker) {
			clients := make([]*http.Client, 4)
			for i := range clients {
				clients[i] = a.client(true)
			}
			a.loop(a.size(1200, 3200), func(i int) {
				a.send(clients[i%len(clients)], &call{path: conversations + "Append", token: a.Keys[bobA], body: strings.NewReader(`{"conversationId":"flooded","messages":[{"role":"ROLE_USER","text":"x"}]}`)})
			})
		},
	})

	// Headers and queries.
	all = append(all, &abuse{
		name: "large heads", by: stranger, what: "64 clients with heads of 12 KB", bound: "16 KiB of head", refused: []string{"401", "431"},
		attack: func(a *attacker) {
			client := a.client(false)
			header := map[string]string{"X-Large": strings.Repeat("x", 12<<10)}
			a.loop(64, func(int) {
				a.send(client, &call{path: conversations + "GetConversation", header: header, body: strings.NewReader(`{}`)})
			})
		},
	}, &abuse{
		name: "large heads in HTTP/2", by: stranger, what: "2,000 streams with heads of 12 KB that stay open", bound: "16 KiB of head, refused from their headers",
		attack: func(a *attacker) {
			header := map[string]string{"X-Large": strings.Repeat("x", 12<<10)}
			n := a.size(1000, 2000)
			a.expect(n / 2)
			a.hold(4, func(int) {
				client := a.client(true)
				a.hold(n/4, func(int) {
					a.send(client, &call{path: conversations + "GetConversation", header: header, body: &unfinished{a: a}})
					pause(a.ctx, time.Second)
				})
			})
		},
	}, &abuse{
		name: "long queries", by: oneUser, what: "64 clients of GET with 10 KB of query: messages, parameters, page tokens", bound: "16 KiB of head", refused: []string{"400", "404", "414", "431"},
		attack: func(a *attacker) {
			client := a.client(false)
			huge := strings.Repeat("A", 10<<10)
			token, _ := json.Marshal(map[string]any{"pageToken": huge})
			deep := `{"conversationId":` + strings.Repeat("[", 3_000) + `}`
			queries := []string{
				"ListConversations?connect=v1&encoding=json&message=" + url.QueryEscape(string(token)),
				"GetConversation?connect=v1&encoding=json&base64=1&message=" + huge,
				"GetConversation?connect=v1&encoding=json&message=" + url.QueryEscape(deep),
				"GetConversation?connect=v1&encoding=json&message=%7B%7D" + strings.Repeat("&x=1", 2<<10),
				"GetConversation?connect=v1&encoding=proto&base64=1&compression=gzip&message=" + base64.RawURLEncoding.EncodeToString(bomb(8<<20)),
			}
			a.loop(64, func(i int) {
				a.send(client, &call{method: http.MethodGet, path: conversations + queries[i%len(queries)], token: a.Keys[bobA]})
			})
		},
	}, &abuse{
		name: "long page tokens", by: oneUser, what: "16 clients with page tokens and ids of 3.9 MB", bound: "the body's limit", refused: []string{"400", "413", "429"},
		attack: func(a *attacker) {
			client := a.client(false)
			huge := strings.Repeat("A", 3_900_000)
			a.loop(16, func(i int) {
				body := `{"pageToken":"` + huge + `"}`
				if i%2 == 1 {
					body = `{"filter":"` + huge + `","projectId":"x"}`
				}
				a.send(client, &call{path: conversations + "ListConversations", token: a.Keys[bobA], body: strings.NewReader(body)})
			})
		},
	})
	return all
}

// unfinished is a body that has some filler and then nothing until the attack is over.
type unfinished struct {
	a    *attacker
	left int
}

// Read implements [io.Reader].
func (u *unfinished) Read(p []byte) (int, error) {
	if u.left > 0 {
		n := min(len(p), u.left)
		for i := range p[:n] {
			p[i] = ' '
		}
		u.left -= n
		return n, nil
	}
	u.a.arrive()
	<-u.a.ctx.Done()
	return 0, io.ErrUnexpectedEOF
}

// unfinishedCalls holds calls of some users, by turns, over HTTP/2 connections of 800.
func unfinishedCalls(n int, users ...string) func(*attacker) {
	return func(a *attacker) {
		const per = 800
		a.expect(n * 9 / 10)
		a.hold((n+per-1)/per, func(i int) {
			client := a.client(true)
			a.hold(min(per, n-i*per), func(int) {
				for a.ctx.Err() == nil {
					a.send(client, &call{path: conversations + "GetConversation", token: a.Keys[users[i%len(users)]], body: &unfinished{a: a}})
					pause(a.ctx, time.Second)
				}
			})
		})
	}
}

// stream opens a stream and reads it to its end.
func (a *attacker) stream(client *http.Client, c *call) {
	c.opened = sync.OnceFunc(a.arrive)
	defer c.opened()
	a.send(client, c)
}

// bombs sends gzip that unpacks to so many bytes.
func bombs(user string, clients, unpacked int, paths ...string) func(*attacker) {
	return func(a *attacker) {
		body := bomb(unpacked)
		a.loop(clients, func(i int) {
			// Over HTTP/1.1 by hand: net/http might have other ideas of the body.
			a.send(a.client(false), &call{
				path: paths[i%len(paths)], token: a.Keys[user], header: map[string]string{"Content-Encoding": "gzip"}, body: bytes.NewReader(body),
			})
		})
	}
}

// unread sends a request and does not read its answer, until the server has enough or the attack ends.
func (a *attacker) unread(c *call, body string) { a.count(a.ignore(c, body)) }

func (a *attacker) ignore(c *call, body string) string {
	conn, err := a.dial(4 << 10)
	if err != nil {
		return a.broken()
	}
	defer conn.Close()
	_, err = conn.Write(append(a.head(c, int64(len(body))), body...))
	a.arrive()
	for err == nil && a.ctx.Err() == nil {
		// What is sent to a connection that was closed is answered with a reset, and the next cannot be sent.
		_, err = conn.Write([]byte("\r\n"))
		pause(a.ctx, 500*time.Millisecond)
	}
	return a.broken()
}

// ignoreFrames does the same in HTTP/2, by granting the answer no more than the first window.
func (a *attacker) ignoreFrames(c *call, body []byte) string {
	f, err := a.h2()
	if err != nil {
		return a.broken()
	}
	if _, err := f.open(c, body); err != nil {
		return a.broken()
	}
	f.read()
	a.mu.Lock()
	defer a.mu.Unlock()
	for outcome := range a.counts {
		return outcome
	}
	return outcomeHeld
}

// wrongCredentials presents what is wrong: by an id that exists, and by none.
func wrongCredentials(a *attacker) {
	client := a.client(false)
	known, _, _ := strings.Cut(strings.TrimPrefix(a.Keys[serviceA], "hfk_"), "_")
	wrongSecret := func(token string) string { return token[:len(token)-8] + "AAAAAAAA" }
	tokens := []string{
		"hfk_" + known + "_" + strings.Repeat("A", 43),
		wrongSecret(a.Keys[annA]),
		wrongSecret(a.Params["access"]),
		wrongSecret(a.Params["refresh"]),
		"hfk_" + strings.Repeat("a", len(known)) + "_" + strings.Repeat("A", 43),
		"garbage",
		a.Params["badJWT"],
		"eyJhbGciOiJub25lIn0.e30.",
	}
	a.loop(32, func(i int) {
		path := conversations + "GetConversation"
		if i%len(tokens) == 3 {
			path = sessions + "RefreshSession"
		}
		a.send(client, &call{path: path, token: tokens[i%len(tokens)], body: strings.NewReader(`{}`)})
	})
}
