package session

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/identity"
	"holdfast/object"
)

var (
	floorHeld = refusal{connect.CodeFailedPrecondition, "LEASE_HELD"}
	fenced    = refusal{connect.CodeFailedPrecondition, "FENCED"}
)

// tab is a client of its own: a session, a connection, and what it says.
type tab struct {
	in           *sessionv1.CreateSessionResponse
	client       client
	talk         conversations
	connection   string
	index, epoch int64
}

// tab signs a user in and opens a connection.
func (b *bundle) tab(t *testing.T, user identity.User) *tab {
	t.Helper()
	x := &tab{in: b.signIn(t, user)}
	x.client, x.talk = b.with(t, x.in.GetTokens().GetAccessToken()), b.conversations(t, x.in.GetTokens().GetAccessToken())
	x.connection = must(x.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_VOICE)))(t).GetConnection().GetConnectionId()
	return x
}

func (x *tab) acquire(t *testing.T, takeover bool) (*sessionv1.AcquireFloorResponse, error) {
	t.Helper()
	return x.client.AcquireFloor(t.Context(), &sessionv1.AcquireFloorRequest{ConversationId: c1, ConnectionId: x.connection, Takeover: takeover})
}

// live connects to the provider, as far as Holdfast knows.
func (x *tab) live(t *testing.T) error {
	t.Helper()
	res, err := x.talk.OpenLive(t.Context(), &conversationv1.OpenLiveRequest{ConversationId: c1, SetupHash: "h"})
	if err == nil {
		x.epoch, x.index = res.GetEpoch(), 0
	}
	return err
}

// say sends what its user says, as a frame of the Live API.
func (x *tab) say(t *testing.T, words string) error {
	t.Helper()
	return x.frame(t, fmt.Sprintf(`{"serverContent":{"inputTranscription":{"text":%q}}}`, words))
}

func (x *tab) frame(t *testing.T, frame string) error {
	t.Helper()
	x.index++
	_, err := x.talk.IngestLive(t.Context(), &conversationv1.IngestLiveRequest{ConversationId: c1, Epoch: x.epoch, Frames: []*conversationv1.LiveFrame{
		{ClientIndex: x.index, Frame: &conversationv1.LiveFrame_Text{Text: frame}},
	}, IfVersion: 0, RequestId: fmt.Sprint(x.epoch, "-", x.index)}) // with a request id it is stored at once
	return err
}

func texts(t *testing.T, c conversations) []string {
	t.Helper()
	var all []string
	for _, m := range get(t, c).GetMessages() {
		all = append(all, m.GetText())
	}
	return all
}

// Two tabs press talk in the same instant. One of them has the floor; the other is told, takes it over, and from then on
// the first one's late frames are refused, also if it connects anew.
func TestTwoTabsPressTalk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tabs := []*tab{b.tab(t, ada), b.tab(t, ada)}
	create(t, tabs[0].talk)
	errs := make([]error, len(tabs))
	var wait sync.WaitGroup
	begin := make(chan struct{})
	for i, x := range tabs {
		wait.Go(func() {
			<-begin
			_, errs[i] = x.acquire(t, false)
		})
	}
	close(begin)
	wait.Wait()
	winner := slices.IndexFunc(errs, func(err error) bool { return err == nil })
	if winner < 0 {
		t.Fatalf("nobody has the floor: %v", errs)
	}
	first, second := tabs[winner], tabs[1-winner]
	floorHeld.check(t, errs[1-winner])

	if err := first.live(t); err != nil {
		t.Fatal(err)
	}
	if err := first.say(t, "Can you look"); err != nil {
		t.Fatal(err)
	}
	floorHeld.check(t, second.live(t)) // it does not have the floor
	taken := must(second.acquire(t, true))(t)
	if taken.GetFloor().GetFence() <= first.epoch {
		t.Errorf("the fence is %d, the first tab's epoch %d", taken.GetFloor().GetFence(), first.epoch)
	}
	fenced.check(t, first.say(t, " at the late one"))
	floorHeld.check(t, first.live(t)) // connecting anew does not get the floor back
	_, err := first.acquire(t, false)
	floorHeld.check(t, err)
	if err := second.live(t); err != nil {
		t.Fatal(err)
	}
	if second.epoch != taken.GetFloor().GetFence() {
		t.Errorf("it speaks in epoch %d, the fence is %d", second.epoch, taken.GetFloor().GetFence())
	}
	if err := second.say(t, " at the other one?"); err != nil {
		t.Fatal(err)
	}
	fenced.check(t, first.say(t, " and this"))
	if got := texts(t, second.talk); !slices.Equal(got, []string{"Can you look at the other one?"}) {
		t.Errorf("the conversation is %q", got)
	}
	// What came late is kept apart.
	fragments := must(second.talk.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t).GetRecords()
	if len(fragments) != 2 || fragments[0].GetFragment().GetUserText() != " at the late one" || fragments[1].GetFragment().GetUserText() != " and this" {
		t.Errorf("the fragments are %v", fragments)
	}
	if f := get(t, second.talk).GetConversation().GetLive(); f.GetLease().GetExpireTime() == nil || f.GetConnectionId() != second.connection || f.GetUser() != string(ada) {
		t.Errorf("the conversation shows %v", f)
	}
}

// Many press talk, again and again. There is never more than one holder, and each new one's fence is higher.
func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tabs := make([]*tab, 6)
	for i := range tabs {
		tabs[i] = b.tab(t, ada)
	}
	create(t, tabs[0].talk)
	var mu sync.Mutex
	fences := map[int64]string{}
	var wait sync.WaitGroup
	for i, x := range tabs {
		wait.Go(func() {
			for range 10 {
				res, err := x.acquire(t, i%2 == 0)
				if err != nil {
					if reason(err) != floorHeld.reason {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				if other, ok := fences[res.GetFloor().GetFence()]; ok && other != x.connection {
					t.Errorf("two holders have the fence %d", res.GetFloor().GetFence())
				}
				fences[res.GetFloor().GetFence()] = x.connection
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	if len(fences) < 2 {
		t.Errorf("the fences were %v", fences)
	}
}

// The holder keeps the floor with its fence, gives it back, and gets it again; another user never takes it over.
func TestTheFloorsLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x, y := b.tab(t, ada), b.tab(t, ada)
	create(t, x.talk)
	w := watch(t, x.client, &sessionv1.WatchSessionRequest{})
	first := must(x.acquire(t, false))(t).GetFloor()
	w.until(t, "the floor", func(m *sessionv1.WatchSessionResponse) bool {
		return m.GetSession().GetFloorConversationId() == first.GetConversationId()
	})
	again := must(x.acquire(t, false))(t).GetFloor()
	if again.GetFence() != first.GetFence() || !again.GetExpireTime().AsTime().After(first.GetExpireTime().AsTime()) {
		t.Errorf("first %v, again %v", first, again)
	}
	release := func(x *tab) bool {
		t.Helper()
		return must(x.client.ReleaseFloor(t.Context(), &sessionv1.ReleaseFloorRequest{ConversationId: c1, ConnectionId: x.connection}))(t).GetReleased()
	}
	if release(y) {
		t.Error("it gave back what it had not")
	}
	if !release(x) || release(x) {
		t.Error("it is given back once")
	}
	w.until(t, "no floor", func(m *sessionv1.WatchSessionResponse) bool {
		return !m.GetHeartbeat() && m.GetSession().GetFloorConversationId() == ""
	})
	if back := must(x.acquire(t, false))(t).GetFloor(); back.GetFence() != first.GetFence() {
		t.Errorf("nobody had it meanwhile, and the fence is %d, was %d", back.GetFence(), first.GetFence())
	}
	release(x)
	if other := must(y.acquire(t, false))(t).GetFloor(); other.GetFence() <= first.GetFence() {
		t.Errorf("another's fence is %d, was %d", other.GetFence(), first.GetFence())
	}
	// A connection that closes frees the floor.
	must(y.client.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: y.connection}, Close: true}))(t)
	must(x.acquire(t, false))(t)
	// So does a session that ends.
	must(x.client.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
	z := b.tab(t, ada)
	must(z.acquire(t, false))(t)
	_, err := z.client.AcquireFloor(t.Context(), &sessionv1.AcquireFloorRequest{ConversationId: c1, ConnectionId: y.connection})
	notFound.check(t, err)

	// In a conversation of the whole tenant users do not take the floor from each other; a private one is not found.
	service := b.conversations(t, b.key(t, nobody))
	must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "shared", Shared: true}))(t)
	eve := b.tab(t, "eve")
	take := func(x *tab) error {
		return second(x.client.AcquireFloor(t.Context(), &sessionv1.AcquireFloorRequest{ConversationId: "shared", ConnectionId: x.connection, Takeover: true}))
	}
	if err := take(eve); err != nil {
		t.Fatal(err)
	}
	floorHeld.check(t, take(z))
	_, err = eve.acquire(t, true)
	notFound.check(t, err)
	// z had the floor of c1, and tried for another's in vain: it still has it.
	_, err = b.tab(t, ada).acquire(t, false)
	floorHeld.check(t, err)
}

// The lease ends by itself, at its time for those who ask, and soon after for those who watch.
func TestTheFloorExpires(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x, y := b.tab(t, ada), b.tab(t, ada)
	create(t, x.talk)
	must(b.with(t, b.key(t, nobody)).PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{FloorLease: durationpb.New(5 * time.Second)}}))(t)
	watch := must(x.talk.WatchConversation(t.Context(), &conversationv1.WatchConversationRequest{ConversationId: c1}))(t)
	t.Cleanup(func() { watch.Close() })
	held := must(x.acquire(t, false))(t).GetFloor()
	for seen := false; ; {
		if !watch.Receive() {
			t.Fatal(watch.Err())
		}
		m := watch.Msg()
		seen = seen || (m.GetConversation().GetLive().GetLease().GetExpireTime() != nil)
		if seen && !m.GetHeartbeat() && !(m.GetConversation().GetLive().GetLease().GetExpireTime() != nil) {
			if m.GetConversation().GetUpdateTime().AsTime().Before(held.GetExpireTime().AsTime()) {
				t.Errorf("the lease to %v was over at %v", held.GetExpireTime().AsTime(), m.GetConversation().GetUpdateTime().AsTime())
			}
			break
		}
	}
	must(y.acquire(t, false))(t)
}

// A session runs into its time-out in the middle of a voice turn. What was said is kept, the floor is free, and the handle
// to go on with is there for the same user only.
func TestTimeOutDuringAVoiceTurn(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		near func(r *storev1.SessionRecord, end *timestamppb.Timestamp)
		why  sessionv1.EndReason
	}{
		"idle": {func(r *storev1.SessionRecord, end *timestamppb.Timestamp) {
			r.ActiveTime = timestamppb.New(end.AsTime().Add(-r.GetIdleTimeout().AsDuration()))
		}, sessionv1.EndReason_END_REASON_IDLE_TIMEOUT},
		"absolute": {func(r *storev1.SessionRecord, end *timestamppb.Timestamp) { r.ExpireTime = end }, sessionv1.EndReason_END_REASON_ABSOLUTE_TIMEOUT},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			x := b.tab(t, ada)
			create(t, x.talk)
			must(x.acquire(t, false))(t)
			if err := x.live(t); err != nil {
				t.Fatal(err)
			}
			if err := x.frame(t, `{"setupComplete":{}}`); err != nil {
				t.Fatal(err)
			}
			if err := x.frame(t, `{"sessionResumptionUpdate":{"newHandle":"handle-1","resumable":true}}`); err != nil {
				t.Fatal(err)
			}
			if err := x.say(t, "Can you look at"); err != nil {
				t.Fatal(err)
			}
			w := watch(t, x.client, &sessionv1.WatchSessionRequest{})
			w.next(t)

			// Its end is there. The floor's lease, which is never longer than the session, ends with it.
			id := x.in.GetSession().GetSessionId()
			b.change(t, ada, func(s *storev1.UserSessions, now time.Time) { tt.near(s.GetSessions()[id], timestamppb.New(now)) })
			last := w.until(t, "the end", func(m *sessionv1.WatchSessionResponse) bool { return m.GetSession().GetEndReason() != 0 })
			if last.GetSession().GetEndReason() != tt.why {
				t.Errorf("it ended with %v", last.GetSession())
			}
			eventually(t, "the token is refused", func() bool {
				_, err := x.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
				return reason(err) == expired.reason
			})
			expired.check(t, x.say(t, " this"))
			b.expireFloor(t)

			y := b.tab(t, ada)
			if err := second(y.acquire(t, false)); err != nil {
				t.Errorf("the floor is not free: %v", err)
			}
			if got := texts(t, y.talk); !slices.Equal(got, []string{"Can you look at"}) {
				t.Errorf("what was said is %q", got)
			}
			plan := must(y.talk.GetResumePlan(t.Context(), &conversationv1.GetResumePlanRequest{ConversationId: c1, SetupHash: "h"}))(t)
			if plan.GetHandle() != "handle-1" {
				t.Errorf("the plan is %v", plan)
			}
			_, err := b.tab(t, "eve").talk.GetResumePlan(t.Context(), &conversationv1.GetResumePlanRequest{ConversationId: c1, SetupHash: "h"})
			notFound.check(t, err)
			if err := y.live(t); err != nil {
				t.Error(err)
			}
			if err := y.say(t, " the other one?"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A floor is given for no longer than its session lives.
func TestTheFloorDoesNotOutliveItsSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := b.tab(t, ada)
	create(t, x.talk)
	end := timestamppb.New(time.Time{})
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		end = timestamppb.New(now.Add(25 * time.Second))
		s.GetSessions()[x.in.GetSession().GetSessionId()].ExpireTime = end
	})
	same(t, "the end of the floor", must(x.acquire(t, false))(t).GetFloor().GetExpireTime(), end)
}

// expireFloor does to the floor of c1 what time would, where the test has made the end of its session come sooner.
func (b *bundle) expireFloor(t *testing.T) {
	t.Helper()
	_, err := b.manager.conversations.Update(b.As(t, ada), object.ID(c1), func(tx *object.Tx[*conversationstorev1.ConversationState]) error {
		tx.State().Floor.ExpireTime = timestamppb.New(tx.Now())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
