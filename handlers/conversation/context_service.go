package conversation

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

const (
	defaultWindow = 32_000 // tokens
	defaultSeed   = 8_000
	// maxCatchUp is how many messages a session that is resumed is told.
	maxCatchUp = 200
	// maxWindow is how many messages, and apart from them tool calls, are looked at for one window.
	maxWindow = 10_000
	// readTries is how often a read of several pages begins again because somebody wrote meanwhile.
	readTries = 8
)

// errWritten: somebody wrote between two pages of one read.
var errWritten = errors.New("the conversation was changed meanwhile")

// reader reads one version of a conversation, page by page.
type reader struct {
	m    *Manager
	id   object.ID
	info object.Info
	s    state
	// outline: it keeps no more than the outlines of what it reads.
	outline bool
}

// read calls do with a reader, again where the version changes meanwhile.
func (m *Manager) read(ctx context.Context, id string, do func(*reader) error) (*reader, error) {
	for range readTries {
		snap, err := m.kind.View(ctx, object.ID(id))
		if err != nil {
			return nil, err
		}
		r := &reader{m: m, id: object.ID(id), info: snap.Info, s: snap.State}
		if err = do(r); !errors.Is(err, errWritten) {
			return r, err
		}
	}
	return nil, problem.Later(errorv1.Reason_REASON_CONTENTION, "others change this conversation all the time", 250*time.Millisecond)
}

func (r *reader) same(page object.EntriesPage, err error) (object.EntriesPage, error) {
	if err == nil && page.Version != r.info.Version {
		err = errWritten
	}
	return page, err
}

// items reads the newest messages, at least until enough says so, and the tool calls among them. after is the message
// before the first that counts. whole reports whether that was reached.
func (r *reader) items(
	ctx context.Context, after int64, enough func(items []windowItem, whole bool) bool,
) (items []windowItem, whole bool, err error) {
	messages, calls := &tail{r: r, collection: inMessages}, &tail{r: r, collection: inToolCalls, done: r.s.GetToolCallCount() == 0}
	for {
		if err := messages.more(ctx, func(i windowItem) bool { return i.seq() > after }); err != nil {
			return nil, false, err
		}
		found := messages.items
		first := after + 1
		if len(found) > 0 && !messages.done {
			first = found[0].seq()
		}
		// Calls belong to the window from its first message on; all of them where it is the conversation's.
		if first == 1 {
			first = 0
		}
		belongs := func(i windowItem) bool { return i.seq() >= first }
		for !calls.done && (len(calls.items) == 0 || belongs(calls.items[0])) {
			if err := calls.more(ctx, nil); err != nil {
				return nil, false, err
			}
		}
		i := slices.IndexFunc(calls.items, belongs)
		if i < 0 {
			i = len(calls.items)
		}
		items = arrange(found, calls.items[i:])
		whole = messages.done || len(found) >= maxWindow
		if whole || enough(items, whole) {
			return items, whole, nil
		}
	}
}

// tail is the newest entries of a collection, read page by page towards the oldest.
type tail struct {
	r          *reader
	collection string
	items      []windowItem // oldest first
	before     string       // key of the oldest
	done       bool         // there are no more that are wanted
}

// more reads one more page. Items that are not wanted end it.
func (t *tail) more(ctx context.Context, wanted func(windowItem) bool) error {
	if t.done {
		return nil
	}
	before := cmp.Or(t.before, "~") // behind every key
	page, err := t.r.same(t.r.m.kind.Entries(ctx, t.r.id, t.collection, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize}))
	if err != nil {
		return err
	}
	got := itemsOf(page.Entries)
	if t.done = !page.More; len(page.Entries) > 0 {
		t.before = page.Entries[0].Key
	}
	if wanted != nil {
		if i := slices.IndexFunc(got, wanted); i > 0 || i < 0 && len(got) > 0 {
			t.done = true
			if i < 0 {
				i = len(got)
			}
			got = got[i:]
		}
	}
	if t.r.outline {
		for i := range got {
			got[i] = got[i].outline()
		}
	}
	t.items = slices.Concat(got, t.items)
	return nil
}

// pinned reads the messages that are in every window.
func (r *reader) pinned(ctx context.Context) ([]*storev1.Message, error) {
	if len(r.s.GetPinnedSeqs()) == 0 {
		return nil, nil
	}
	keys := make([]string, len(r.s.GetPinnedSeqs()))
	for i, seq := range r.s.GetPinnedSeqs() {
		keys[i] = object.SeqKey(seq)
	}
	page, err := r.same(r.m.kind.Lookup(ctx, r.id, inMessages, keys...))
	return rpc.Values[*storev1.Message](page.Entries), err
}

// contextWindow is a window, with what is in it.
type contextWindow struct {
	about   *conversationv1.ContextWindow
	outside []*storev1.Message // pinned and system messages before the window
	summary *storev1.Summary   // nil: none
	items   []windowItem
}

// contextWindow reads what a model should be told within a budget, in an answer of which so many bytes are taken.
func (r *reader) contextWindow(ctx context.Context, budget int64, recentOnly bool, taken int) (*contextWindow, error) {
	w := &contextWindow{about: &conversationv1.ContextWindow{}}
	room := budget
	if !recentOnly {
		w.summary = r.s.GetSummary()
		room -= w.summary.GetTokenCount()
	}
	pinned, err := r.pinned(ctx)
	if err != nil {
		return nil, err
	}
	costs := map[int64]int64{}
	for _, m := range pinned {
		costs[m.GetSeq()] = windowItem{message: m}.tokens()
	}
	after := w.summary.GetToSeq()
	if w.summary != nil {
		taken += rpc.AnswerSize(w.summary)
	}
	for _, m := range pinned {
		taken += windowItem{message: m}.bytes()
	}
	items, whole, err := r.items(ctx, after, func(items []windowItem, whole bool) bool {
		_, ok := choose(items, whole, room, costs)
		return ok || newestWithin(items, object.AnswerBytes-taken) > 0
	})
	if err != nil {
		return nil, err
	}
	chosen, _ := choose(items, whole, room, costs)
	chosen = chosen.within(items, whole, object.AnswerBytes-taken)
	w.items = items[chosen.from:]
	w.about.TotalTokens, w.about.OverBudget, w.about.SummarySeq = chosen.tokens+w.summary.GetTokenCount(), chosen.over, small(w.summary.GetSeq())
	first := r.s.GetLastSeq() + 1
	for _, i := range w.items {
		if i.message != nil {
			if w.about.FromSeq == 0 {
				w.about.FromSeq, first = small(i.seq()), i.seq()
			}
			w.about.ToSeq = small(i.seq())
		}
	}
	for _, m := range pinned {
		if m.GetSeq() < first {
			w.outside = append(w.outside, m)
		}
	}
	w.about.DroppedCount = small(max(first-1-after, 0))
	for _, m := range w.outside {
		if m.GetSeq() > after {
			w.about.DroppedCount--
		}
	}
	// The next summary goes on where the newest ends.
	if from, ok := compactable(items, whole, budget/2); ok && r.s.GetSummary().GetToSeq() < items[from].seq()-1 && items[from].seq() <= firstPlace(r.s.GetLive()) {
		if chosen.from > 0 || !whole || w.about.GetTotalTokens() > budget/2 {
			w.about.CompactFromSeq, w.about.CompactToSeq = small(r.s.GetSummary().GetToSeq()+1), small(items[from].seq()-1)
		}
	}
	return w, nil
}

// turns puts the window into Gemini's form. System messages are left out where they go elsewhere.
func (w *contextWindow) turns(onlyText, withSystem bool) *gemini.Turns {
	t := &gemini.Turns{OnlyText: onlyText}
	add := func(i windowItem) {
		if withSystem || i.message.GetRole() != storev1.Role_ROLE_SYSTEM {
			addItem(t, i)
		}
	}
	for _, m := range w.outside {
		add(windowItem{message: m})
	}
	t.AddSummary(w.summary)
	for _, i := range w.items {
		add(i)
	}
	return t
}

func (w *contextWindow) systemMessages() []*storev1.Message {
	var out []*storev1.Message
	for _, m := range w.outside {
		if m.GetRole() == storev1.Role_ROLE_SYSTEM {
			out = append(out, m)
		}
	}
	for _, i := range w.items {
		if i.message.GetRole() == storev1.Role_ROLE_SYSTEM {
			out = append(out, i.message)
		}
	}
	return out
}

func (w *contextWindow) neutral() []*conversationv1.ContextItem {
	var out []*conversationv1.ContextItem
	add := func(i windowItem) {
		if i.call != nil {
			out = append(out, &conversationv1.ContextItem{Item: &conversationv1.ContextItem_ToolCall{ToolCall: presentCall(i.call)}})
		} else {
			out = append(out, &conversationv1.ContextItem{Item: &conversationv1.ContextItem_Message{Message: presentMessage(heard(i.message))}})
		}
	}
	for _, m := range w.outside {
		add(windowItem{message: m})
	}
	if w.summary != nil {
		out = append(out, &conversationv1.ContextItem{Item: &conversationv1.ContextItem_Summary{Summary: presentSummary(w.summary)}})
	}
	for _, i := range w.items {
		add(i)
	}
	return out
}

// GetContextWindow implements ConversationService.
func (m *Manager) GetContextWindow(
	ctx context.Context, req *conversationv1.GetContextWindowRequest,
) (*conversationv1.GetContextWindowResponse, error) {
	budget := cmp.Or(int64(req.GetBudgetTokens()), defaultWindow)
	res := &conversationv1.GetContextWindowResponse{}
	r, err := m.read(ctx, req.GetConversationId(), func(r *reader) error {
		w, err := r.contextWindow(ctx, budget, req.GetRecentOnly(), 0)
		if err != nil {
			return err
		}
		res.Window = w.about
		switch req.GetFormat() {
		case conversationv1.ContextFormat_CONTEXT_FORMAT_GEMINI_CONTENTS:
			res.Contents, res.SystemInstruction = w.turns(false, false).Contents, gemini.SystemInstruction(w.systemMessages())
		case conversationv1.ContextFormat_CONTEXT_FORMAT_LIVE_SEED:
			res.Seed = w.turns(true, true).Seed(req.GetEndsWithUser())
		default:
			res.Items = w.neutral()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	res.Version = int64(r.info.Version)
	return res, nil
}

// ProposeCompaction implements ConversationService.
func (m *Manager) ProposeCompaction(
	ctx context.Context, req *conversationv1.ProposeCompactionRequest,
) (*conversationv1.ProposeCompactionResponse, error) {
	keep := cmp.Or(int64(req.GetKeepTokens()), DefaultKeepTokens)
	lease := cmp.Or(req.GetLeaseDuration().AsDuration(), DefaultCompactionLease)
	for range readTries {
		var wanted *storev1.CompactionLease
		var previous *storev1.Summary
		if _, err := m.read(ctx, req.GetConversationId(), func(r *reader) (err error) {
			previous = r.s.GetSummary()
			wanted, err = r.compaction(ctx, keep, req.GetFromScratch())
			return err
		}); err != nil {
			return nil, err
		}
		res, err := object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
			func(tx *object.Tx[state]) (*conversationv1.ProposeCompactionResponse, error) {
				if wanted == nil {
					tx.Unchanged()
					return &conversationv1.ProposeCompactionResponse{}, nil
				}
				got, err := leaseCompaction(tx.State(), wanted, int64(req.GetFencingToken()), lease, tx.Now())
				if err != nil {
					return nil, refuse(err)
				}
				tx.Emit("compaction_leased")
				res := &conversationv1.ProposeCompactionResponse{
					Lease:   &typev1.Lease{FencingToken: small(got.GetToken()), ExpireTime: got.GetExpireTime(), ExpiresIn: durationpb.New(lease)},
					FromSeq: small(got.GetFromSeq()), ToSeq: small(got.GetToSeq()), TokenCount: got.GetTokenCount(),
				}
				if got.GetFromSeq() > 1 {
					res.Previous = presentSummary(previous)
				}
				return res, nil
			})
		if !errors.Is(err, errMoved) {
			return res, err
		}
	}
	return nil, problem.Later(errorv1.Reason_REASON_CONTENTION, "others summarise this conversation all the time", 250*time.Millisecond)
}

// compaction chooses the range to summarise next; nil: there is none. It walks through all that no summary has, and keeps the
// outline of it alone.
func (r *reader) compaction(ctx context.Context, keep int64, fromScratch bool) (*storev1.CompactionLease, error) {
	after := r.s.GetSummary().GetToSeq()
	lease := &storev1.CompactionLease{
		BaseSummarySeq: r.s.GetSummary().GetSeq(), TokenCount: r.s.GetSummary().GetTokenCount(), RemovedCount: r.s.GetRemovedCount(),
	}
	if fromScratch {
		after, lease.TokenCount = 0, 0
	}
	r.outline = true
	items, whole, err := r.items(ctx, after, func([]windowItem, bool) bool { return false })
	if err != nil {
		return nil, err
	}
	if !whole || len(items) == 0 {
		return nil, nil
	}
	end, ok := compactable(items, whole, keep)
	if !ok {
		return nil, nil
	}
	// A range that is too long for one summary ends with an earlier turn.
	may := cuts(items, whole)
	place := firstPlace(r.s.GetLive())
	for end > 0 && (!may[end] || items[end].seq()-1-after > maxCompaction || items[end].seq() > place) {
		end--
	}
	lease.FromSeq, lease.ToSeq = after+1, items[end].seq()-1
	if lease.GetToSeq() < lease.GetFromSeq() {
		return nil, nil
	}
	for _, i := range items[:end] {
		lease.TokenCount += i.tokens()
	}
	return lease, nil
}

// firstPlace is the first seq whose words may still come; what is after it is not summarised.
func firstPlace(live *storev1.LiveState) int64 {
	first := int64(math.MaxInt64)
	for _, seq := range voice.Places(live) {
		first = min(first, seq)
	}
	return first
}

// CommitCompaction implements ConversationService.
func (m *Manager) CommitCompaction(
	ctx context.Context, req *conversationv1.CommitCompactionRequest,
) (*conversationv1.CommitCompactionResponse, error) {
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.CommitCompactionResponse, error) {
			s := tx.State()
			summary, err := commitSummary(s, req, tx.Now())
			if err != nil {
				return nil, refuse(err)
			}
			if summary == nil {
				tx.Unchanged()
			} else {
				tx.Put(inSummaries, object.SeqKey(summary.GetSeq()), summary)
				tx.Emit("compacted")
			}
			return &conversationv1.CommitCompactionResponse{Summary: presentSummary(s.GetSummary()), Version: int64(tx.Info().Version)}, nil
		})
}
