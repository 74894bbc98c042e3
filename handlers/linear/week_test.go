package linear

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"holdfast/db"
	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// weekVar, in the environment, is how many issues the week has; 20 times as many events happen.
const weekVar = "HOLDFAST_LINEAR_WEEK"

// week is Linear in a simulated week that ends now.
type week struct {
	*synced

	r       *rand.Rand
	hook    *Webhook
	began   time.Time
	key     string
	down    bool // of Linear's API
	deaf    bool // of this server
	serial  int
	pending map[int][]delivery // by the minute in which they come
	asked   int                // requests
	// least is the least number of requests that bring everything here: one whenever the sync asks, more where more changed than is on a
	// page, and once a day all ids, without which nobody knows what was deleted.
	least int
	swept time.Time
}

type delivery struct {
	body  []byte
	tries int
}

func (w *week) minute() int { return int(w.clock.now().Sub(w.began) / time.Minute) }

// at is a time of this second by Linear's clock, no two the same.
func (w *week) at() string {
	w.serial++
	return w.clock.now().Truncate(time.Second).Add(time.Duration(w.serial%1000) * time.Millisecond).UTC().Format("2006-01-02T15:04:05.000Z")
}

// happen changes something in Linear, and sends its webhook, if it is not lost.
func (w *week) happen(ids []string) {
	l := w.linear
	l.mu.Lock()
	defer l.mu.Unlock()
	id, at := ids[w.r.IntN(len(ids))], w.at()
	kind, action, data, around := "Issue", "update", map[string]any{"id": id}, map[string]any{}
	i := l.issues[id]
	switch n := w.r.IntN(100); {
	case i == nil:
		l.mu.Unlock()
		l.put(id, "t"+strconv.Itoa(w.serial), 0)
		l.mu.Lock()
		i, action = l.issues[id], "create"
		i["createdAt"], i["updatedAt"] = at, at
	case n < 20:
		kind = "Comment"
		cid := fmt.Sprintf("c-%s-%d", id, w.r.IntN(3))
		c := l.comments[cid]
		switch {
		case c == nil:
			l.mu.Unlock()
			l.comment(cid, id, "b"+strconv.Itoa(w.serial), 0)
			l.mu.Lock()
			c, action = l.comments[cid], "create"
			c["createdAt"] = at
		case n < 2:
			delete(l.comments, cid)
			action, data = "remove", map[string]any{"id": cid}
		default:
			c["body"], c["editedAt"] = "b"+strconv.Itoa(w.serial), at
		}
		c["updatedAt"] = at
		if action != "remove" {
			data = map[string]any{"id": cid, "body": c["body"], "issueId": id, "createdAt": c["createdAt"], "updatedAt": at, "user": c["user"]}
		}
	case n == 20: // for good: Linear knows nothing of it any more
		delete(l.issues, id)
		maps.DeleteFunc(l.comments, func(_ string, c map[string]any) bool { return c["issue"].(map[string]any)["id"] == id })
		action = "remove"
	default:
		around["updatedFrom"] = map[string]any{"title": i["title"], "updatedAt": i["updatedAt"]}
		i["title"], i["updatedAt"] = "t"+strconv.Itoa(w.serial), at
		switch n % 4 {
		case 0:
			i["priority"] = n % 5
		case 1:
			state := []string{"started", "completed", "backlog"}[n%3]
			i["state"] = map[string]any{"id": "s-" + state, "name": state, "type": state, "color": "#fff"}
		case 2:
			i["assignee"] = map[string]any{"id": fmt.Sprint("u", n%5), "name": fmt.Sprint("U", n%5)}
		case 3:
			i["trashed"] = n%2 == 0
		}
	}
	if kind == "Issue" && action != "remove" {
		for _, p := range []string{"id", "identifier", "title", "url", "priority", "state", "team", "assignee", "trashed", "labelIds", "createdAt", "updatedAt"} {
			data[p] = i[p]
		}
	}
	around["data"] = data
	m := hook(kind, action, 0, around)
	m["createdAt"], m["webhookTimestamp"] = at, w.clock.now().UnixMilli()
	body, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	now := w.minute()
	copies := 1
	if w.r.IntN(20) == 0 {
		copies = 2
	}
	for range copies {
		switch w.r.IntN(20) {
		case 0: // lost
		case 1:
			late := now + 1 + w.r.IntN(400)
			w.pending[late] = append(w.pending[late], delivery{body, 0})
		default:
			w.pending[now] = append(w.pending[now], delivery{body, 0})
		}
	}
}

// deliver sends the webhooks of this minute, side by side and in no order. Linear tries again after a minute, an hour and six.
func (w *week) deliver(t *testing.T) {
	var due []delivery
	now := w.minute()
	for m, of := range w.pending {
		if m <= now {
			due = append(due, of...)
			delete(w.pending, m)
		}
	}
	slices.SortFunc(due, func(a, b delivery) int { return bytes.Compare(a.body, b.body) }) // a map has no order
	w.r.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	if w.deaf {
		for _, d := range due {
			if d.tries < 3 {
				again := now + []int{1, 60, 360}[d.tries]
				w.pending[again] = append(w.pending[again], delivery{d.body, d.tries + 1})
			}
		}
		return
	}
	var wait sync.WaitGroup
	for chunk := range slices.Chunk(due, 16) {
		for _, d := range chunk {
			wait.Go(func() {
				req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, w.endpoint.GetPath(), bytes.NewReader(d.body))
				req.Header.Set("Linear-Signature", sign(signingSecret, d.body))
				res := httptest.NewRecorder()
				w.hook.ServeHTTP(res, req)
				if res.Code != http.StatusOK {
					t.Errorf("%d %s: %s", res.Code, res.Body, d.body)
				}
			})
		}
		wait.Wait()
	}
}

// RoundTrip fails as Linear does: in outages, with a revoked key, and with an error of its schema on one page of a hundred.
func (w *week) RoundTrip(req *http.Request) (*http.Response, error) {
	res := httptest.NewRecorder()
	w.asked++
	switch {
	case w.down:
		fails(http.StatusServiceUnavailable, "INTERNAL_SERVER_ERROR", nil)(res, req)
		return res.Result(), nil
	case req.Header.Get("Authorization") != w.key:
		fails(http.StatusUnauthorized, "AUTHENTICATION_ERROR", nil)(res, req)
		return res.Result(), nil
	}
	req.Header.Set("Authorization", linearKey)
	w.linear.ServeHTTP(res, req)
	if w.r.IntN(100) > 0 {
		return res.Result(), nil
	}
	var answer map[string]any
	if err := json.Unmarshal(res.Body.Bytes(), &answer); err != nil {
		return nil, err
	}
	data, _ := answer["data"].(map[string]any)
	list, _ := data[issues].(map[string]any)
	if nodes, _ := list["nodes"].([]any); len(nodes) > 0 {
		at := w.r.IntN(len(nodes))
		nodes[at] = nil
		answer["errors"] = []any{map[string]any{"message": "Entity not found", "path": []any{issues, "nodes", at, "project"}, "extensions": map[string]any{"code": "ENTITY_NOT_FOUND"}}}
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	spoilt := httptest.NewRecorder()
	spoilt.Header().Set("Content-Type", "application/json")
	_, _ = spoilt.Write(body)
	return spoilt.Result(), nil
}

// needed is how many pages of each list have what has changed since a time.
func (w *week) needed(since time.Time, size int) map[string]int {
	w.linear.mu.Lock()
	defer w.linear.mu.Unlock()
	pages := map[string]int{}
	for list, things := range w.linear.lists() {
		n := 0
		for _, thing := range things {
			if t, err := time.Parse(time.RFC3339Nano, thing["updatedAt"].(string)); err == nil && !t.Before(since) {
				n++
			}
		}
		pages[list] = max(1, (n+size-1)/size)
	}
	return pages
}

// theirs is what Linear has, as far as it is compared.
func (w *week) theirs() map[string]string {
	w.linear.mu.Lock()
	defer w.linear.mu.Unlock()
	out := map[string]string{}
	name := func(thing any) string {
		m, _ := thing.(map[string]any)
		return fmt.Sprint(m["name"])
	}
	for id, i := range w.linear.issues {
		trashed, _ := i["trashed"].(bool)
		out[id] = fmt.Sprint(i["title"], " ", i["priority"], " ", name(i["state"]), " ", name(i["assignee"]), " ", trashed)
	}
	for id, c := range w.linear.comments {
		out[id] = fmt.Sprint(c["body"])
	}
	return out
}

func (w *week) ours(t *testing.T) map[string]string {
	out, ids := map[string]string{}, []string{}
	for req := (&linearv1.ListIssuesRequest{PageSize: 200, Order: linearv1.IssueOrder_ISSUE_ORDER_CREATED}); ; {
		res := must(w.service.ListIssues(t.Context(), req))(t)
		for _, i := range res.GetIssues() {
			out[i.GetIssueId()] = fmt.Sprint(i.GetTitle(), " ", i.GetPriority(), " ", i.GetState().GetName(), " ", cmp.Or(i.GetAssignee().GetName(), "<nil>"), " ", i.GetTrashed())
			ids = append(ids, i.GetIssueId())
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	for _, id := range ids {
		for _, c := range must(w.service.ListComments(t.Context(), &linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: id}}))(t).GetComments() {
			out[c.GetCommentId()] = c.GetBody()
		}
	}
	return out
}

// A week of Linear, with webhooks that are lost, doubled and late, two outages of Linear and one of this server, a revoked key and errors on
// one page of a hundred, ends with what Linear has, and with hardly more requests than are needed.
func TestAWeekOfLinear(t *testing.T) {
	t.Parallel()
	count, step := 60, 30 // the sync is due every step minutes
	if n, err := strconv.Atoi(os.Getenv(weekVar)); err == nil {
		count, step = n, 1
	}
	events := 20 * count
	const minutes = 7 * 24 * 60
	w := &week{synced: setupSync(t), r: rand.New(rand.NewPCG(1, 2)), key: linearKey, pending: map[int][]delivery{}}
	w.hook = NewWebhook(WebhookConfig{Kinds: w.kinds, FindEndpoints: w.DB.FindEndpoints, Open: w.box.Open, Now: w.clock.now, Log: slog.New(slog.DiscardHandler)})
	w.clock.advance(-(minutes + 40*60) * time.Minute)
	w.began = w.clock.now()
	syncer := NewSync(SyncConfig{
		Kinds: w.kinds, Open: w.box.Open, Client: &http.Client{Transport: w}, URL: w.linear.url, Now: w.clock.now, Log: slog.New(slog.DiscardHandler),
	})
	run := func(ctx context.Context) {
		since, before, up := time.UnixMilli(0), w.asked, !w.down && w.key == linearKey
		if mark := w.state(t).GetHighWaterTime(); mark != nil {
			since = mark.AsTime()
		}
		needed := w.needed(since, maxPage)
		if err := syncer.Once(ctx, db.Endpoint{Tenant: w.Tenant, ID: w.endpoint.GetEndpointId()}); err != nil && up {
			t.Fatal(err)
		}
		if !up || w.asked == before {
			return
		}
		w.least += slices.Max(slices.Collect(maps.Values(needed)))
		if now := w.clock.now(); w.swept.IsZero() {
			w.swept = now
		} else if now.Sub(w.swept) >= sweepEvery {
			w.swept = now
			for _, n := range w.needed(time.UnixMilli(0), sweptPage) {
				w.least += n
			}
		}
	}
	ids := make([]string, count)
	for i := range ids {
		ids[i] = fmt.Sprint("i", i)
		w.happen(ids[i : i+1])
	}
	done := 0
	for m := range minutes {
		for ; done < events*m/minutes; done++ {
			w.happen(ids)
		}
		w.down = m > 2000 && m < 2180 || m > 7000 && m < 7180
		w.deaf = m > 4000 && m < 4120
		w.key = linearKey
		if m > 5000 && m < 5500 {
			w.key = "another"
		}
		w.deliver(t)
		if m%step == 0 {
			run(t.Context())
		}
		w.clock.advance(time.Minute)
	}
	// The last hours are quiet: what is late comes, and what was deleted in the last day is found.
	for range 5 {
		w.clock.advance(6 * time.Hour)
		w.deliver(t)
		run(t.Context())
	}
	if diff := gocmp.Diff(w.theirs(), w.ours(t)); diff != "" {
		t.Errorf("(-Linear's +ours):\n%s", diff)
	}
	t.Logf("%d issues, %d events: %d requests, at least %d are needed: %.3f times as many", count, events, w.asked, w.least, float64(w.asked)/float64(w.least))
	if float64(w.asked) > 1.2*float64(w.least) && step == 1 {
		t.Errorf("%d requests, %d are needed", w.asked, w.least)
	}
}
