package session

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
)

// speaker is a connection of a session that wants to write, with a credential of its own.
type speaker struct {
	name                string
	client              client
	talk                conversations
	session, connection string
	// token is true where its credential is a session's token.
	token bool
	// epoch is the newest that it was given.
	epoch int64
}

// speaker opens a connection of a session, which calls with a credential.
func (b *bundle) speaker(t *testing.T, name string, in *sessionv1.CreateSessionResponse, credential string) *speaker {
	t.Helper()
	s := &speaker{
		name: name, client: b.with(t, credential), talk: b.conversations(t, credential), session: in.GetSession().GetSessionId(),
		token: credential == in.GetTokens().GetAccessToken(),
	}
	s.connection = must(s.client.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: s.session, Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_VOICE, Device: &typev1.Device{Name: name}}}))(t).GetConnection().GetConnectionId()
	return s
}

// tabs are two connections of one session.
func (b *bundle) tabs(t *testing.T) (x, y *speaker) {
	t.Helper()
	in := b.signIn(t, ada)
	token := in.GetTokens().GetAccessToken()
	return b.speaker(t, "a tab", in, token), b.speaker(t, "another tab", in, token)
}

func (s *speaker) acquire(t *testing.T, conversation string, takeover bool) (*sessionv1.FloorHold, error) {
	t.Helper()
	res, err := s.client.AcquireFloor(t.Context(), &sessionv1.AcquireFloorRequest{
		ConversationId: conversation, SessionId: s.session, ConnectionId: s.connection, Takeover: takeover,
	})
	return res.GetFloor(), err
}

func (s *speaker) release(t *testing.T, conversation string) (bool, error) {
	t.Helper()
	res, err := s.client.ReleaseFloor(t.Context(), &sessionv1.ReleaseFloorRequest{ConversationId: conversation, SessionId: s.session, ConnectionId: s.connection})
	return res.GetReleased(), err
}

func (s *speaker) open(t *testing.T, conversation, connection string) (int64, error) {
	t.Helper()
	res, err := s.talk.OpenLive(t.Context(), &conversationv1.OpenLiveRequest{ConversationId: conversation, ConnectionId: connection})
	if err == nil {
		s.epoch = res.GetEpoch()
	}
	return res.GetEpoch(), err
}

func (s *speaker) say(t *testing.T, conversation string, epoch, index int64) error {
	t.Helper()
	_, err := s.talk.IngestLive(t.Context(), &conversationv1.IngestLiveRequest{ConversationId: conversation, Epoch: epoch, Frames: []*conversationv1.LiveFrame{
		{ClientIndex: index, Frame: &conversationv1.LiveFrame_Text{Text: fmt.Sprintf(`{"realtimeInput":{"text":"%d"}}`, index)}},
	}})
	return err
}

// close and fail are the other calls that write as a live connection.
func (s *speaker) close(t *testing.T, conversation string, epoch int64) error {
	t.Helper()
	return second(s.talk.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: conversation, Epoch: epoch}))
}

func (s *speaker) fail(t *testing.T, conversation string, epoch int64) error {
	t.Helper()
	return second(s.talk.ReportResumeFailed(t.Context(), &conversationv1.ReportResumeFailedRequest{ConversationId: conversation, Epoch: epoch, HandleId: 1}))
}

// While one connection has the floor nobody else writes as a live connection: no other tab of its session, no other session
// of its user, no API key, no other user, whatever epoch they send.
func TestOnlyTheHolderOfTheFloorWrites(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const shared = "shared" // all may write in it
	service := b.conversations(t, b.key(t, nobody))
	must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: shared, Shared: true}))(t)
	loser, holder := b.tabs(t)
	other, eve := b.signIn(t, ada), b.signIn(t, "eve")
	speakers := []*speaker{
		loser,
		b.speaker(t, "another session", other, other.GetTokens().GetAccessToken()),
		b.speaker(t, "the user's key", b.signIn(t, ada), b.key(t, ada)),
		b.speaker(t, "a service", b.signIn(t, ada), b.key(t, nobody)),
		b.speaker(t, "another user", eve, eve.GetTokens().GetAccessToken()),
		b.speaker(t, "another user's key", b.signIn(t, "eve"), b.key(t, "eve")),
	}
	must(loser.acquire(t, shared, false))(t)
	old := must(loser.open(t, shared, ""))(t)
	if err := loser.say(t, shared, old, 1); err != nil {
		t.Fatal(err)
	}
	fence := must(holder.acquire(t, shared, true))(t).GetFence()
	if fence <= old {
		t.Fatalf("the fence is %d, the epoch before it %d", fence, old)
	}

	read := func() *conversationv1.GetConversationResponse {
		t.Helper()
		got := must(holder.talk.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: shared, MessageLimit: 50}))(t)
		got.Conversation.Version, got.Conversation.UpdateTime, got.Conversation.ExpireTime = 0, nil, nil // what comes late is kept apart
		return got
	}
	refused := func(stage string, newest int64) {
		t.Helper()
		before := read()
		for _, s := range speakers {
			for name, call := range map[string]func(*testing.T, string, int64) error{
				"IngestLive":         func(t *testing.T, id string, epoch int64) error { return s.say(t, id, epoch, 10) },
				"CloseLive":          s.close,
				"ReportResumeFailed": s.fail,
			} {
				for _, epoch := range []int64{old, newest + 1, newest + 5, math.MaxInt64} {
					switch got := reason(call(t, shared, epoch)); {
					case epoch == old && got == "FENCED":
					case epoch > newest && (got == "FENCED" || got == "LEASE_HELD"):
					default:
						t.Errorf("%s: %s of %s with epoch %d: %q", stage, name, s.name, epoch, got)
					}
				}
			}
			_, err := s.open(t, shared, s.connection)
			floorHeld.check(t, err)
			holds := info(err).GetMetadata()
			if holds["connection_id"] != holder.connection || holds["user"] != string(ada) || holds["expire_time"] == "" {
				t.Errorf("%s: the holder is %v", s.name, holds)
			}
			if s != loser {
				_, err = s.open(t, shared, "")
				floorHeld.check(t, err)
			}
			_, err = s.acquire(t, shared, false)
			floorHeld.check(t, err)
			_, err = s.release(t, shared)
			if err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		// A session's token is not another session's, whatever it sends.
		for _, s := range speakers {
			if s.session != holder.session && s.token {
				floorHeld.check(t, s.say(t, shared, newest, 10))
			}
		}
		floorHeld.check(t, speakers[5].say(t, shared, newest, 10))
		same(t, stage+": the conversation", read(), before)
	}
	refused("before it is open", fence)
	// The fence is an epoch to speak in, and OpenLive gives the next.
	if err := holder.say(t, shared, fence, 1); err != nil {
		t.Error(err)
	}
	refused("in the fence's epoch", fence)
	epoch := must(holder.open(t, shared, holder.connection))(t)
	if epoch != fence+1 {
		t.Errorf("the epoch is %d, the fence %d", epoch, fence)
	}
	refused("in its own epoch", epoch)
	if err := holder.say(t, shared, epoch, 1); err != nil {
		t.Error(err)
	}
	if err := holder.close(t, shared, epoch); err != nil {
		t.Error(err)
	}
	// The floor does not end with the connection.
	refused("after it closed", epoch)

	// Who acquires with a key opens with it.
	must(holder.release(t, shared))(t)
	key := speakers[2]
	fence = must(key.acquire(t, shared, false))(t).GetFence()
	if got := must(key.open(t, shared, ""))(t); got < fence {
		t.Errorf("the epoch is %d, the fence %d", got, fence)
	}
	floorHeld.check(t, second(speakers[3].open(t, shared, "")))
	if err := key.say(t, shared, key.epoch, 1); err != nil {
		t.Error(err)
	}
}

// A connection that was opened while nobody had the floor is fenced by whoever acquires it, also by who had it before.
func TestTheFloorFencesWhatWasOpenedWithoutIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x, y := b.tabs(t)
	create(t, x.talk)
	must(x.acquire(t, c1, false))(t)
	must(x.open(t, c1, ""))(t)
	must(x.release(t, c1))(t)
	must(y.open(t, c1, y.connection))(t)
	if err := y.say(t, c1, y.epoch, 1); err != nil {
		t.Fatal(err)
	}
	must(x.acquire(t, c1, false))(t)
	fenced.check(t, y.say(t, c1, y.epoch, 2))
	fenced.check(t, x.say(t, c1, x.epoch, 2)) // y has replaced it
	must(x.open(t, c1, ""))(t)
	if err := x.say(t, c1, x.epoch, 1); err != nil {
		t.Error(err)
	}
}

// A connection that has fallen silent comes back with its heartbeat. Its live connection goes on, with the floor and the
// fence that it had, unless another has taken the floor.
func TestASilentConnectionComesBack(t *testing.T) {
	t.Parallel()
	silence := func(t *testing.T, b *bundle, x *speaker) {
		t.Helper()
		b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
			s.GetConnections()[x.connection].ExpireTime = timestamppb.New(now)
		})
		if p := must(x.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t).GetPresence(); slices.ContainsFunc(p.GetConnections(), func(c *sessionv1.Connection) bool { return c.GetConnectionId() == x.connection }) {
			t.Fatalf("it is not silent: %v", p)
		}
	}
	back := func(t *testing.T, x *speaker) {
		t.Helper()
		got := must(x.client.PutConnection(t.Context(), heartbeat(x.connection)))(t).GetConnection()
		if p := must(x.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t).GetPresence(); !slices.ContainsFunc(p.GetConnections(), func(c *sessionv1.Connection) bool {
			return c.GetConnectionId() == got.GetConnectionId() && proto.Equal(c.GetExpireTime(), got.GetExpireTime())
		}) {
			t.Errorf("it is not back: %v", p)
		}
	}
	for name, tt := range map[string]struct {
		meanwhile func(t *testing.T, b *bundle, y *speaker)
		back      func(t *testing.T, x *speaker)
		keeps     bool
	}{
		"by a heartbeat":    {func(*testing.T, *bundle, *speaker) {}, back, true},
		"by the floor":      {func(*testing.T, *bundle, *speaker) {}, func(*testing.T, *speaker) {}, true},
		"after the lease":   {func(t *testing.T, b *bundle, _ *speaker) { b.expireFloor(t) }, back, true},
		"after a takeover":  {func(t *testing.T, _ *bundle, y *speaker) { must(y.acquire(t, c1, true))(t) }, back, false},
		"after it was free": {func(t *testing.T, _ *bundle, y *speaker) { must(y.acquire(t, c1, false))(t) }, back, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			x, y := b.tabs(t)
			create(t, x.talk)
			floor := must(x.acquire(t, c1, false))(t)
			must(x.open(t, c1, ""))(t)
			must(x.open(t, c1, ""))(t) // an epoch above the fence
			if err := x.say(t, c1, x.epoch, 1); err != nil {
				t.Fatal(err)
			}
			silence(t, b, x)
			tt.meanwhile(t, b, y)
			tt.back(t, x)
			again, err := x.acquire(t, c1, false)
			if !tt.keeps {
				floorHeld.check(t, err)
				if got := info(err).GetMetadata()["device_name"]; got != y.name {
					t.Errorf("the holder's device is %q", got)
				}
				fenced.check(t, x.say(t, c1, x.epoch, 2))
				return
			}
			if err != nil || again.GetFence() != floor.GetFence() {
				t.Errorf("the fence is %v, was %d: %v", again, floor.GetFence(), err)
			}
			if err := x.say(t, c1, x.epoch, 2); err != nil {
				t.Error(err)
			}
			_, err = y.acquire(t, c1, false)
			floorHeld.check(t, err)
		})
	}
	t.Run("no more than a user may have", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		x, _ := b.tabs(t)
		silence(t, b, x)
		for range maxConnections - 1 {
			must(x.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t)
		}
		_, err := x.client.PutConnection(t.Context(), heartbeat(x.connection))
		refusal{connect.CodeResourceExhausted, "LIMIT_REACHED"}.check(t, err)
		must(x.client.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
		b.peek(t, ada, func(s *storev1.UserSessions) {
			if n := len(s.GetConnections()); n != 0 {
				t.Errorf("%d connections outlive their session", n)
			}
		})
	})
	t.Run("not after sixteen others", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		x, y := b.tabs(t)
		silence(t, b, x)
		for range maxSilent {
			z := must(y.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t).GetConnection().GetConnectionId()
			silence(t, b, &speaker{client: y.client, connection: z})
		}
		must(y.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t)
		_, err := x.client.PutConnection(t.Context(), heartbeat(x.connection))
		notFound.check(t, err)
	})
}

// Whatever a tab, another tab of its session, another session and an API key do in turn, with whatever numbers: what is
// written while one has the floor is written in an epoch of its own, each refusal says why, and nothing runs backwards.
func TestFloorsAndEpochsInAnyOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	must(b.with(t, b.key(t, nobody)).PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{
		FloorLease: durationpb.New(5 * time.Minute), ConnectionTimeout: durationpb.New(10 * time.Minute),
	}}))(t)
	x, y := b.tabs(t)
	in := b.signIn(t, ada)
	all := []*speaker{
		x, y, b.speaker(t, "another session", in, in.GetTokens().GetAccessToken()), b.speaker(t, "a key", b.signIn(t, ada), b.key(t, ada)),
	}
	type op struct {
		Do, Who, Epoch int
		Takeover       bool
	}
	ops := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) op {
		return op{
			Do: rapid.IntRange(0, 9).Draw(r, "do"), Who: rapid.IntRange(0, len(all)-1).Draw(r, "who"),
			Epoch: rapid.IntRange(0, 8).Draw(r, "epoch"), Takeover: rapid.Bool().Draw(r, "takeover"),
		}
	}), 1, 24)
	conversation, index := 0, int64(0)
	rapid.Check(t, func(r *rapid.T) {
		conversation++
		id := fmt.Sprint("c-", conversation)
		must(x.talk.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id}))(t)
		var holder, last *speaker
		var live, fence, version int64
		owners := map[int64]*speaker{} // of the epochs
		for _, s := range all {
			s.epoch = 0
		}
		expect := func(what string, err error, want string) {
			r.Helper()
			if got := reason(err); got != want || (err == nil) != (want == "") {
				r.Fatalf("%s: %v, not %q", what, err, want)
			}
		}
		for _, o := range ops.Draw(r, "ops") {
			s := all[o.Who]
			newest := max(live, fence)
			changed := true
			switch o.Do {
			case 0, 1:
				hold, err := s.acquire(t, id, o.Takeover)
				if holder != nil && holder != s && !o.Takeover {
					expect("acquire", err, "LEASE_HELD")
					changed = false
					break
				}
				expect("acquire", err, "")
				switch got := hold.GetFence(); {
				case s == last && (live <= fence || owners[live] == s):
					if got != fence {
						r.Fatalf("the fence is %d, it had %d", got, fence)
					}
				case got <= newest:
					r.Fatalf("the fence is %d, and %d was issued before", got, newest)
				}
				fence, holder, last = hold.GetFence(), s, s
				owners[fence] = s
			case 2:
				released, err := s.release(t, id)
				expect("release", err, "")
				if changed = released; released != (holder == s) {
					r.Fatalf("released: %t", released)
				}
				if released {
					holder = nil
				}
			case 3, 4:
				epoch, err := s.open(t, id, s.connection)
				if holder != nil && holder != s {
					expect("open", err, "LEASE_HELD")
					changed = false
					break
				}
				expect("open", err, "")
				if epoch <= live || epoch < fence || epoch > newest+1 {
					r.Fatalf("the epoch is %d; the newest was %d, the fence is %d", epoch, live, fence)
				}
				live, owners[epoch] = epoch, s
			default:
				epoch := []int64{s.epoch, s.epoch, newest, newest + 1, newest - 1, 1, 0, -1, math.MaxInt64}[o.Epoch]
				index++
				var err error
				if o.Do == 9 {
					err = s.close(t, id, epoch)
				} else {
					err = s.say(t, id, epoch, index)
				}
				first := max(newest, 1)
				if o.Do == 9 && live < first {
					first = math.MaxInt64 - 1 // nothing is open
				}
				switch {
				case epoch < 1:
					expect("write", err, "FIELD_INVALID")
				case epoch < newest:
					expect("write", err, "FENCED")
				case holder != nil && s.token && s.session != holder.session:
					expect("write", err, "LEASE_HELD")
				case epoch != first:
					expect("write", err, "FENCED")
				default:
					expect("write", err, "")
					if owner := owners[epoch]; holder != nil && owner != holder {
						r.Fatalf("%s has the floor, and epoch %d is of another", holder.name, epoch)
					}
					live = max(live, epoch)
				}
				changed = err == nil || reason(err) == "FENCED"
			}
			got := must(x.talk.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t)
			if l := got.GetConversation().GetLive().GetLease(); int64(l.GetFencingToken()) != max(live, fence) || (l.GetExpireTime() != nil) != (holder != nil) {
				r.Fatalf("the lease is %v; want epoch %d, fence %d", l, live, fence)
			}
			v := got.GetConversation().GetVersion()
			if !changed && version != 0 && v != version {
				r.Fatalf("what was refused made version %d of %d", v, version)
			}
			version = v
		}
	})
}
