package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/object"
)

var fieldInvalid = refusal{connect.CodeInvalidArgument, "FIELD_INVALID"}

// Wrong secrets for a session are counted, wherever they come from, and its user finds them in the audit.
func TestRefusedCredentialsAreInTheAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	for i := range 9 {
		token := flip(in.GetTokens().GetAccessToken())
		if i%2 == 1 {
			token = flip(in.GetTokens().GetRefreshToken())
		}
		token = token[:len(token)-2] + string(rune('a'+i)) + "A" // none of them twice
		from := fmt.Sprint("Test-Address: 192.0.2.", i)
		var err error
		if i%2 == 1 {
			_, err = b.with(t, token, from).RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{})
		} else {
			_, err = b.with(t, token, from).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
		}
		invalid.check(t, err)
	}
	res := must(b.with(t, b.key(t, ada)).ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{}))(t)
	var counts []int32
	for _, e := range res.GetEvents() {
		if e.GetType() == sessionv1.SecurityEventType_SECURITY_EVENT_TYPE_CREDENTIALS_REFUSED {
			counts = append(counts, e.GetCount())
			if e.GetSessionId() != in.GetSession().GetSessionId() || e.GetActor() != server {
				t.Errorf("the audit has %v", e)
			}
		}
	}
	if !slices.Equal(counts, []int32{8, 4, 2, 1}) {
		t.Errorf("the audit counts %v", counts)
	}
	// Who never presented a bad one goes on as before.
	must(b.with(t, in.GetTokens().GetAccessToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{}))(t)
	must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t)
	// So does who did: only bad ones wait.
	must(b.with(t, in.GetTokens().GetRefreshToken(), "Test-Address: 192.0.2.3").RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{}))(t)
}

// A tenant that wants nothing of devices stored gets that.
func TestDevicesAreNotStoredWhereTheTenantSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.with(t, b.key(t, nobody))
	must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{DiscardDevices: true}}))(t)
	device := &typev1.Device{Name: "name-7f3a", Platform: "platform-7f3a", UserAgent: "agent-7f3a", Address: "address-7f3a"}
	in := must(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: string(ada), Device: device, RequestId: "r-1"}))(t)
	must(b.with(t, in.GetTokens().GetAccessToken()).PutConnection(t.Context(),
		&sessionv1.PutConnectionRequest{RequestId: "r-2", Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_TEXT, Device: device}}))(t)
	if strings.Contains(b.dump(t), "7f3a") {
		t.Error("something of the device is stored")
	}
	must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"discard_devices"}}}))(t)
	in = must(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: string(ada), Device: device}))(t)
	same(t, "the device", in.GetSession().GetDevice(), device)
	events := must(service.ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{User: string(ada), PageSize: 1}))(t)
	same(t, "the device in the audit", events.GetEvents()[0].GetDevice(), device)
}

// Settings are read at sign-in and at each refresh. They cut a session short, and never make it live longer.
func TestSettings(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.with(t, b.key(t, nobody))
	same(t, "the defaults", must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{}))(t).GetSettings(), presentSettings(defaults()))
	in := b.signIn(t, ada)
	if s := in.GetSession(); s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()) != 24*time.Hour || s.GetIdleExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()) != time.Hour ||
		in.GetTokens().GetAccessExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()) != 15*time.Minute {
		t.Errorf("by default: %v", s)
	}
	set := &sessionv1.SessionSettings{
		AccessTtl: durationpb.New(time.Minute), IdleTimeout: durationpb.New(5 * time.Minute), AbsoluteTimeout: durationpb.New(10 * time.Minute), RefreshGrace: durationpb.New(0),
	}
	want := presentSettings(effective(storedSettings(set)))
	res := must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: set}))(t)
	same(t, "what was set", res.GetSettings(), want)
	same(t, "what is set", must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{}))(t).GetSettings(), want)
	if want.GetRefreshGrace().AsDuration() != 0 || want.GetMaxSessions() != 10 {
		t.Errorf("effective: %v", want)
	}

	next := must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t)
	if s := next.GetSession(); s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()) != 10*time.Minute || s.GetIdleExpireTime().AsTime().Sub(s.GetActiveTime().AsTime()) != 5*time.Minute {
		t.Errorf("tightened: %v", s)
	}
	must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{
		Settings:   &sessionv1.SessionSettings{RefreshGrace: durationpb.New(0)},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"*"}},
	}))(t)
	next = must(b.refresh(t, next.GetTokens().GetRefreshToken()))(t)
	if s := next.GetSession(); s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()) != 10*time.Minute {
		t.Errorf("loosened: %v", s)
	}
	// Without a grace a retry is a reuse.
	last := must(b.refresh(t, next.GetTokens().GetRefreshToken()))(t)
	_, err := b.refresh(t, next.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	_, err = b.refresh(t, last.GetTokens().GetRefreshToken())
	revoked.check(t, err)
}

// A user's connections are bounded, and one that closes or expires makes room.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.with(t, b.signIn(t, ada).GetTokens().GetAccessToken())
	open := func() (*sessionv1.PutConnectionResponse, error) {
		return c.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT))
	}
	var last *sessionv1.PutConnectionResponse
	for range maxConnections {
		last = must(open())(t)
	}
	_, err := open()
	refusal{connect.CodeResourceExhausted, "LIMIT_REACHED"}.check(t, err)
	must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: last.GetConnection().GetConnectionId()}, Close: true}))(t)
	must(open())(t)
}

// Who asks twice with one request id gets one answer, and one change.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	c := b.with(t, b.key(t, ada))
	id := in.GetSession().GetSessionId()
	create(t, b.conversations(t, b.key(t, ada)))
	twice := func(name string, do func() (any, error)) {
		t.Helper()
		first := must(do())(t)
		version := b.version(t)
		again := must(do())(t)
		if fmt.Sprint(first) != fmt.Sprint(again) {
			t.Errorf("%s: first %v, again %v", name, first, again)
		}
		if now := b.version(t); now != version {
			t.Errorf("%s changed something again: version %d, then %d", name, version, now)
		}
	}
	open := &sessionv1.PutConnectionRequest{SessionId: id, RequestId: "open", Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_TEXT}}
	twice("opening a connection", func() (any, error) { return c.PutConnection(t.Context(), open) })
	connection := must(c.PutConnection(t.Context(), open))(t).GetConnection().GetConnectionId()
	twice("a heartbeat", func() (any, error) {
		return c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, RequestId: "beat", Connection: &sessionv1.Connection{ConnectionId: connection}})
	})
	twice("UpdateSession", func() (any, error) {
		return c.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{RequestId: "update", SessionId: id, Session: &sessionv1.Session{ActiveProjectId: "p"}})
	})
	twice("closing it", func() (any, error) {
		return c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, RequestId: "close", Connection: &sessionv1.Connection{ConnectionId: connection}, Close: true})
	})
	twice("ending a session", func() (any, error) {
		return c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{RequestId: "end", SessionIds: []string{id}})
	})
	twice("ending all of them", func() (any, error) {
		return c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{RequestId: "revoke", Scope: sessionv1.EndScope_END_SCOPE_USER})
	})
	_, err := c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{RequestId: "revoke", SessionIds: []string{id}})
	refusal{connect.CodeAlreadyExists, "REQUEST_ID_REUSED"}.check(t, err)
	_, err = c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{IfVersion: proto.Int64(1), SessionIds: []string{id}})
	refusal{connect.CodeAborted, "VERSION_MISMATCH"}.check(t, err)
}

func (b *bundle) version(t *testing.T) int64 {
	t.Helper()
	return int64(must(b.manager.kinds.Users.View(b.As(t, ada), object.ID(objectID(b.Tenant, ada))))(t).Version)
}

// What is wrong with a request is said of the field that it is in, and nothing is done.
func TestInvalidRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	id := in.GetSession().GetSessionId()
	hers, service := b.with(t, b.key(t, ada)), b.with(t, b.key(t, nobody))
	long := strings.Repeat("x", 1000)
	before := b.version(t)
	for name, do := range map[string]func() error{
		"a user with a control character": func() error {
			return second(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "a\nb"}))
		},
		"a user too long": func() error {
			return second(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: long}))
		},
		"a service for nobody": func() error { return second(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{})) },
		"a device's name too long": func() error {
			return second(hers.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{Device: &typev1.Device{Name: long}}))
		},
		"a conversation that cannot be": func() error {
			return second(hers.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{ActiveConversationId: "a b"}))
		},
		"a session id that cannot be": func() error {
			return second(hers.GetSession(t.Context(), &sessionv1.GetSessionRequest{SessionId: "s"}))
		},
		"no session": func() error { return second(hers.GetSession(t.Context(), &sessionv1.GetSessionRequest{})) },
		"no current session": func() error {
			return second(hers.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_OTHERS}))
		},
		"no modality": func() error {
			return second(hers.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, Connection: &sessionv1.Connection{}}))
		},
		"a capability twice": func() error {
			return second(hers.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, Connection: &sessionv1.Connection{Modality: 1, Capabilities: []string{"a", "a"}}}))
		},
		"a mask of what is not there": func() error {
			return second(hers.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{SessionId: id, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"device"}}, Session: &sessionv1.Session{}}))
		},
		"an idle time-out too short": func() error {
			return second(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{IdleTimeout: durationpb.New(time.Second)}}))
		},
		"too many sessions": func() error {
			return second(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{MaxSessions: 51}}))
		},
		"an access token that outlives its session": func() error {
			return second(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{
				AbsoluteTimeout: durationpb.New(5 * time.Minute), IdleTimeout: durationpb.New(5 * time.Minute),
			}}))
		},
		"a page too large": func() error {
			return second(hers.ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{PageSize: 201}))
		},
	} {
		err := do()
		if got := reason(err); got != fieldInvalid.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := b.version(t); now != before {
		t.Errorf("something was done: version %d, then %d", before, now)
	}
	_, err := b.with(t, b.key(t, "eve")).PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, Connection: &sessionv1.Connection{Modality: 1}})
	notFound.check(t, err)
	must(hers.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{id}}))(t)
	_, err = hers.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, Connection: &sessionv1.Connection{Modality: 1}})
	refusal{connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION"}.check(t, err)
}

func second[R any](_ R, err error) error { return err }

// Of the sessions that are over the newest are kept, for a day; of the audit the newest events, page by page.
func TestWhatIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.with(t, b.key(t, ada))
	for range maxEnded + 3 {
		in := must(c.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{}))(t)
		must(c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{in.GetSession().GetSessionId()}}))(t)
	}
	list := func() []*sessionv1.Session {
		t.Helper()
		return must(c.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{IncludeEnded: true}))(t).GetSessions()
	}
	if n := len(list()); n != maxEnded {
		t.Errorf("%d are kept", n)
	}
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		for _, r := range s.GetSessions() {
			r.End.EndTime = timestamppb.New(now.Add(-keepEnded))
		}
	})
	if n := len(list()); n != 0 {
		t.Errorf("%d are kept after a day", n)
	}

	var seqs []int32
	for token := ""; ; {
		page := must(c.ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{PageToken: token, PageSize: 7}))(t)
		for _, e := range page.GetEvents() {
			seqs = append(seqs, e.GetSeq())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(seqs) != 2*(maxEnded+3) || int(seqs[0]) != len(seqs) || seqs[len(seqs)-1] != 1 {
		t.Errorf("the audit has %v", seqs)
	}
	// Events are only ever added; the oldest go when there are too many.
	b.change(t, ada, func(s *storev1.UserSessions, _ time.Time) { s.EventCount = keepEvents })
	b.signIn(t, ada)
	last := must(c.ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{}))(t).GetEvents()
	if last[len(last)-1].GetSeq() != 2 {
		t.Errorf("the oldest are %v", last)
	}
}

// The audit tells who did it.
func TestActors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.with(t, b.key(t, nobody))
	in := must(service.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: string(ada)}))(t)
	must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t)
	must(service.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{in.GetSession().GetSessionId()}}))(t)
	events := must(service.ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{User: string(ada)}))(t).GetEvents()
	var actors []string
	for _, e := range slices.Backward(events) {
		actors = append(actors, e.GetActor())
	}
	if !slices.Equal(actors, []string{"service", "ada", "service"}) {
		t.Errorf("by %q", actors)
	}
	if why := events[0].GetEndReason(); why != sessionv1.EndReason_END_REASON_REVOKED {
		t.Errorf("ended with %v", why)
	}
}
