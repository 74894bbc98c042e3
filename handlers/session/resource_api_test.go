package session

import (
	"fmt"
	"slices"
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
)

// A list has each session once, the newest first, whatever the size of its pages, and goes on where a session was that is gone.
func TestSessionsInPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.with(t, b.key(t, ada))
	var want []string
	for i := range 13 {
		id := must(c.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{}))(t).GetSession().GetSessionId()
		want = append(want, id)
		if i%2 == 1 {
			must(c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{id}}))(t)
		}
	}
	slices.Reverse(want)
	pages := func(size int32, ended bool, between func(last string)) (ids []string) {
		t.Helper()
		for token := ""; ; {
			page := must(c.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: size, PageToken: token, IncludeEnded: ended}))(t)
			if page.GetPresence() == nil || len(page.GetSessions()) > int(size) {
				t.Errorf("a page is %v", page)
			}
			for _, s := range page.GetSessions() {
				ids = append(ids, s.GetSessionId())
			}
			if token = page.GetNextPageToken(); token == "" {
				return ids
			}
			between(ids[len(ids)-1])
		}
	}
	nothing := func(string) {}
	for size := range int32(len(want) + 1) {
		if got := pages(size+1, true, nothing); !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v", size+1, got)
		}
	}
	token := must(c.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: 2}))(t).GetNextPageToken()
	for name, req := range map[string]*sessionv1.ListSessionsRequest{
		"another query":  {PageToken: token, IncludeEnded: true},
		"another user":   {PageToken: token, User: string(ada)},
		"made up":        {PageToken: "AAAAAAAAAAAAAAAA"},
		"not even a one": {PageToken: "?"},
	} {
		_, err := c.ListSessions(t.Context(), req)
		if got := reason(err); got != "PAGE_TOKEN_INVALID" {
			t.Errorf("%s: %q", name, got)
		}
	}
	live := slices.DeleteFunc(slices.Clone(want), func(id string) bool { return slices.Index(want, id)%2 == 1 })
	if got := pages(2, false, func(last string) {
		must(c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{last}}))(t)
	}); !slices.Equal(got, live) {
		t.Errorf("while they end: %v, want %v", got, live)
	}
	if never := must(b.with(t, b.key(t, "eve")).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t); proto.Size(never) != 0 {
		t.Errorf("who never signed in has %v", never)
	}
}

// A session says at which version it is, and is not sent again where it is still as it was.
func TestASessionThatIsAsItWas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	id, c := in.GetSession().GetSessionId(), b.with(t, b.key(t, ada))
	get := func(not int64) *sessionv1.GetSessionResponse {
		t.Helper()
		return must(c.GetSession(t.Context(), &sessionv1.GetSessionRequest{SessionId: id, IfVersionNot: &not}))(t)
	}
	v := get(0).GetSession().GetVersion()
	if v != in.GetSession().GetVersion() || v == 0 {
		t.Errorf("its version is %d, was %d", v, in.GetSession().GetVersion())
	}
	if got := get(v); !got.GetNotModified() || got.GetSession() != nil {
		t.Errorf("at its version: %v", got)
	}
	if got := get(v + 1); got.GetNotModified() || got.GetSession().GetVersion() != v {
		t.Errorf("at another version: %v", got)
	}
	open := must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: id, Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_TEXT}}))(t)
	if got := get(v).GetSession(); got.GetVersion() != v+1 || open.GetSession().GetVersion() != v+1 || len(got.GetConnections()) != 1 {
		t.Errorf("with a connection: %v", got)
	}
	// What time brings counts, though nobody has written it yet.
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		s.GetConnections()[open.GetConnection().GetConnectionId()].ExpireTime = timestamppb.New(now.Add(time.Nanosecond))
	})
	eventually(t, "its connection is silent", func() bool {
		got := get(v + 2)
		return !got.GetNotModified() && len(got.GetSession().GetConnections()) == 0
	})
}

// if_version guards every change of a user's sessions; 0 is a user who never signed in.
func TestIfVersionOfSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.with(t, b.key(t, ada))
	mismatch := refusal{connect.CodeAborted, "VERSION_MISMATCH"}
	in := must(c.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{IfVersion: proto.Int64(0)}))(t).GetSession()
	_, err := c.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{IfVersion: proto.Int64(0)})
	mismatch.check(t, err)
	id := in.GetSessionId()
	for name, change := range map[string]func(v int64) error{
		"UpdateSession": func(v int64) error {
			return second(c.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{IfVersion: &v, SessionId: id, Session: &sessionv1.Session{ActiveProjectId: fmt.Sprint(v)}}))
		},
		"PutConnection": func(v int64) error {
			return second(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{IfVersion: &v, SessionId: id, Connection: &sessionv1.Connection{Modality: 1}}))
		},
		"CreateSession": func(v int64) error {
			return second(c.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{IfVersion: &v}))
		},
	} {
		v := b.version(t)
		mismatch.check(t, change(v-1))
		mismatch.check(t, change(0))
		if err := change(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if now := b.version(t); now != v+1 {
			t.Errorf("%s: version %d, then %d", name, v, now)
		}
	}
	v := b.version(t)
	_, err = c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{IfVersion: new(v - 1), Scope: sessionv1.EndScope_END_SCOPE_USER})
	mismatch.check(t, err)
	must(c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{IfVersion: &v, Scope: sessionv1.EndScope_END_SCOPE_USER}))(t)
	service := b.with(t, b.key(t, nobody))
	two := &sessionv1.SessionSettings{MaxSessions: 2}
	first := must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{IfVersion: proto.Int64(0), Settings: two}))(t)
	_, err = service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{IfVersion: proto.Int64(0), Settings: two})
	mismatch.check(t, err)
	if next := must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{IfVersion: &first.Version, Settings: two}))(t); next.GetVersion() < first.GetVersion() {
		t.Errorf("version %d, then %d", first.GetVersion(), next.GetVersion())
	}
}

// What an update sets is set, what its mask names and it does not have is cleared, and the rest stays.
func TestUpdatingASession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	c := b.with(t, in.GetTokens().GetAccessToken())
	update := func(s *sessionv1.Session, paths ...string) (*sessionv1.Session, error) {
		res, err := c.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{Session: s, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		return res.GetSession(), err
	}
	for _, step := range []struct {
		name                  string
		session               *sessionv1.Session
		paths                 []string
		conversation, project string
		labels                map[string]string
	}{
		{"both", &sessionv1.Session{ActiveConversationId: "c1", ActiveProjectId: "p1", Labels: map[string]string{"a": "1", "b": "2"}}, nil, "c1", "p1", map[string]string{"a": "1", "b": "2"}},
		{"one", &sessionv1.Session{ActiveConversationId: "c2"}, nil, "c2", "p1", map[string]string{"a": "1", "b": "2"}},
		{"nothing", &sessionv1.Session{}, nil, "c2", "p1", map[string]string{"a": "1", "b": "2"}},
		{"a label removed, one added", &sessionv1.Session{Labels: map[string]string{"a": "", "c": "3"}}, nil, "c2", "p1", map[string]string{"b": "2", "c": "3"}},
		{"a label by name", &sessionv1.Session{}, []string{"labels.b"}, "c2", "p1", map[string]string{"c": "3"}},
		{"what is for reading only", &sessionv1.Session{SessionId: "s", Owner: "eve", Version: 99, EndReason: 1, Device: &typev1.Device{Name: "x"}}, nil, "c2", "p1", map[string]string{"c": "3"}},
		{"what the mask does not name", &sessionv1.Session{ActiveConversationId: "c3", ActiveProjectId: "p3"}, []string{"active_project_id"}, "c2", "p3", map[string]string{"c": "3"}},
		{"cleared", &sessionv1.Session{}, []string{"active_conversation_id", "labels"}, "", "p3", nil},
		{"all", &sessionv1.Session{ActiveConversationId: "c4"}, []string{"*"}, "c4", "", nil},
	} {
		s := must(update(step.session, step.paths...))(t)
		if s.GetActiveConversationId() != step.conversation || s.GetActiveProjectId() != step.project || fmt.Sprint(s.GetLabels()) != fmt.Sprint(step.labels) ||
			s.GetOwner() != string(ada) || s.GetEndReason() != 0 {
			t.Errorf("%s: %v", step.name, s)
		}
		same(t, step.name, must(c.GetSession(t.Context(), &sessionv1.GetSessionRequest{}))(t).GetSession(), s)
	}
	if p := presence(t, b); p.GetActiveConversationId() != "c4" || p.GetActiveProjectId() != "" {
		t.Errorf("she is on %v", p)
	}
	for _, path := range []string{"device", "owner", "nothing", "labels.", "active_project_id.x", "end_reason"} {
		_, err := update(&sessionv1.Session{}, path)
		fieldInvalid.check(t, err)
	}
	many := map[string]string{}
	for i := range maxLabels {
		many[fmt.Sprint(i)] = "x"
	}
	must(update(&sessionv1.Session{Labels: many}))(t)
	_, err := update(&sessionv1.Session{Labels: map[string]string{"one more": "x"}})
	fieldInvalid.check(t, err) // no key of a label
	_, err = update(&sessionv1.Session{Labels: map[string]string{"one-more": "x"}})
	fieldInvalid.check(t, err)
	must(update(&sessionv1.Session{Labels: map[string]string{"one-more": "x", "0": ""}}))(t)
}

// One call ends what it names, all of one user, or nothing.
func TestEndingSessionsByName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, service := b.with(t, b.key(t, ada)), b.with(t, b.key(t, nobody))
	one, two, three := b.signIn(t, ada).GetSession().GetSessionId(), b.signIn(t, ada).GetSession().GetSessionId(), b.signIn(t, ada).GetSession().GetSessionId()
	eves := b.signIn(t, "eve").GetSession().GetSessionId()
	end := func(c client, ids ...string) ([]string, error) {
		res, err := c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: ids, Scope: sessionv1.EndScope_END_SCOPE_NAMED})
		if int(res.GetSessionCount()) != len(res.GetSessionIds()) || res.GetMore() {
			t.Errorf("ended: %v", res)
		}
		return res.GetSessionIds(), err
	}
	none := one[:26] + "aaaaaaaaaa"
	for name, tt := range map[string]struct {
		who  client
		ids  []string
		want refusal
	}{
		"one that is not there":   {c, []string{one, none}, notFound},
		"another user's":          {c, []string{eves}, notFound},
		"hers and another user's": {c, []string{one, eves}, fieldInvalid},
		"two users'":              {service, []string{one, eves}, fieldInvalid},
		"one twice":               {c, []string{one, one}, fieldInvalid},
		"none of her own":         {c, nil, fieldInvalid},
		"what is no id":           {c, []string{"x"}, fieldInvalid},
	} {
		_, err := end(tt.who, tt.ids...)
		if got := reason(err); got != tt.want.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := must(end(c, one, two))(t); !slices.Equal(got, []string{one, two}) {
		t.Errorf("ended %v", got)
	}
	if got := must(end(service, two, three))(t); !slices.Equal(got, []string{three}) {
		t.Errorf("ended %v, of which one was over", got)
	}
	if got := must(end(c, one, two, three))(t); len(got) != 0 {
		t.Errorf("ended again: %v", got)
	}
	want := []string{"SIGNED_IN", "SIGNED_IN", "SIGNED_IN", "SESSION_ENDED SIGNED_OUT", "SESSION_ENDED SIGNED_OUT", "SESSION_ENDED REVOKED"}
	if got := b.events(t, ada); !slices.Equal(got, want) {
		t.Errorf("the audit has %q", got)
	}
	for name, req := range map[string]*sessionv1.EndSessionsRequest{
		"names and all":          {SessionIds: []string{eves}, Scope: sessionv1.EndScope_END_SCOPE_USER, User: "eve"},
		"names and a user":       {SessionIds: []string{eves}, User: "eve"},
		"others of another":      {Scope: sessionv1.EndScope_END_SCOPE_OTHERS, User: "eve"},
		"nobody's":               {Scope: sessionv1.EndScope_END_SCOPE_USER},
		"everybody's by version": {Scope: sessionv1.EndScope_END_SCOPE_TENANT, IfVersion: proto.Int64(1)},
		"a scope that is not":    {Scope: 9},
	} {
		_, err := service.EndSessions(t.Context(), req)
		if got := reason(err); got != fieldInvalid.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where there are too many sessions in a tenant for one call, the next goes on.
func TestEverybodyIsSignedOutInPieces(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.manager.endAtOnce = 100
	const users = 250 // more than a page
	service, with := b.key(t, nobody), b.crowd(t)
	for i := range users {
		must(with(service).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", i)}))(t)
	}
	ended := map[string]bool{}
	for calls := 1; ; calls++ {
		res := must(with(service).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_TENANT}))(t)
		if len(res.GetSessionIds()) == 0 && res.GetMore() {
			t.Fatal("it goes on, and does nothing")
		}
		for _, id := range res.GetSessionIds() {
			if ended[id] {
				t.Errorf("%s ended twice", id)
			}
			ended[id] = true
		}
		if !res.GetMore() {
			if calls != 2 {
				t.Errorf("it took %d calls", calls)
			}
			break
		}
	}
	if len(ended) != users {
		t.Errorf("%d ended", len(ended))
	}
}

// A heartbeat says what has changed of a connection, and no more; its holder is told for how long it is there.
func TestPuttingAConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	c := b.with(t, in.GetTokens().GetAccessToken())
	put := func(req *sessionv1.PutConnectionRequest) *sessionv1.Connection {
		t.Helper()
		return must(c.PutConnection(t.Context(), req))(t).GetConnection()
	}
	want := put(&sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{
		Modality: typev1.Modality_MODALITY_VOICE, Device: &typev1.Device{Name: "phone"}, Capabilities: []string{"a"},
		SessionId: "another", OpenTime: timestamppb.New(time.Unix(1, 0)), // which are the server's to say
	}})
	if want.GetSessionId() != in.GetSession().GetSessionId() || want.GetOpenTime().AsTime().Year() < 2000 || want.GetExpiresIn().AsDuration() != time.Minute {
		t.Errorf("opened: %v", want)
	}
	id := want.GetConnectionId()
	same(t, "a heartbeat", put(heartbeat(id)), want)
	for _, step := range []*sessionv1.Connection{
		{Modality: typev1.Modality_MODALITY_TEXT}, {Capabilities: []string{"b", "c"}}, {Device: &typev1.Device{Name: "tablet", Platform: "web"}},
	} {
		if step.GetModality() != 0 {
			want.Modality = step.GetModality()
		}
		if len(step.GetCapabilities()) > 0 {
			want.Capabilities = step.GetCapabilities()
		}
		if step.GetDevice() != nil {
			want.Device = step.GetDevice()
		}
		step.ConnectionId = id
		same(t, "a change", put(&sessionv1.PutConnectionRequest{Connection: step}), want)
		same(t, "after it", presence(t, b).GetConnections()[0], want)
	}
	version := b.version(t)
	put(&sessionv1.PutConnectionRequest{Connection: proto.CloneOf(want)})
	if now := b.version(t); now != version {
		t.Errorf("what changes nothing made version %d of %d", now, version)
	}
	res := must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: id}, Close: true}))(t)
	if res.GetConnection() != nil || len(res.GetSession().GetConnections()) != 0 || presence(t, b).GetOnline() {
		t.Errorf("closed: %v", res)
	}
	_, err := c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: id}, Close: true})
	notFound.check(t, err)
	_, err = c.PutConnection(t.Context(), heartbeat(id))
	notFound.check(t, err)
	for name, req := range map[string]*sessionv1.PutConnectionRequest{
		"nothing": {}, "no modality": {Connection: &sessionv1.Connection{}}, "close of nothing": {Connection: &sessionv1.Connection{Modality: 1}, Close: true},
		"a modality that is not": {Connection: &sessionv1.Connection{Modality: 9}}, "what is no id": {Connection: &sessionv1.Connection{ConnectionId: "x"}},
	} {
		_, err := c.PutConnection(t.Context(), req)
		if got := reason(err); got != fieldInvalid.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Another session of hers has it not.
	_, err = b.with(t, b.signIn(t, ada).GetTokens().GetAccessToken()).PutConnection(t.Context(), heartbeat(put(opening(1)).GetConnectionId()))
	notFound.check(t, err)
}

// Settings are merged: what a request does not name stays, and what its mask names without a value goes back to the default.
func TestSettingsAreMerged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.with(t, b.key(t, nobody))
	put := func(s *sessionv1.SessionSettings, paths ...string) (*sessionv1.PutSessionSettingsResponse, error) {
		return c.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: s, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
	}
	read := func() *sessionv1.PutSessionSettingsResponse { return must(put(nil))(t) }
	want := presentSettings(defaults())
	if got := read(); got.GetVersion() != 0 {
		t.Errorf("a read made version %d", got.GetVersion())
	}
	must(put(&sessionv1.SessionSettings{MaxSessions: 3, DiscardDevices: true}))(t)
	want.MaxSessions, want.DiscardDevices = 3, true
	res := must(put(&sessionv1.SessionSettings{IdleTimeout: durationpb.New(5 * time.Minute)}))(t)
	want.IdleTimeout = durationpb.New(5 * time.Minute)
	same(t, "two changes", res.GetSettings(), want)
	must(put(nil, "discard_devices"))(t)
	want.DiscardDevices = false
	must(put(&sessionv1.SessionSettings{MaxSessions: 9}, "idle_timeout", "max_sessions"))(t)
	want.IdleTimeout, want.MaxSessions = defaults().GetIdleTimeout(), 9
	version := read().GetVersion()
	same(t, "a mask", read().GetSettings(), want)
	// What does not fit together is refused whole, also with what was set before.
	_, err := put(&sessionv1.SessionSettings{AbsoluteTimeout: durationpb.New(30 * time.Minute)})
	fieldInvalid.check(t, err)
	_, err = put(&sessionv1.SessionSettings{MaxSessions: 1}, "max_sessions", "nothing")
	fieldInvalid.check(t, err)
	if got := read(); got.GetVersion() != version || !proto.Equal(got.GetSettings(), want) {
		t.Errorf("after what was refused: %v", got)
	}
	must(put(&sessionv1.SessionSettings{}, "*"))(t)
	same(t, "all of them cleared", read().GetSettings(), presentSettings(defaults()))
}

// A sign-in names all the sessions that ended for it.
func TestWhatEndsForASignIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	must(b.with(t, b.key(t, nobody)).PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{MaxSessions: 3}}))(t)
	ids := make([]string, 3)
	for i := range ids {
		ids[i] = b.signIn(t, ada).GetSession().GetSessionId()
	}
	must(b.with(t, b.key(t, nobody)).PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{MaxSessions: 2}}))(t)
	c := b.with(t, b.key(t, ada))
	req := &sessionv1.CreateSessionRequest{RequestId: "r", ReplaceSessionId: ids[2]}
	res := must(c.CreateSession(t.Context(), req))(t)
	if !slices.Equal(res.GetEndedSessionIds(), []string{ids[2], ids[0]}) {
		t.Errorf("ended %v of %v", res.GetEndedSessionIds(), ids)
	}
	if got := res.GetTokens().GetAccessExpiresIn().AsDuration(); got != 15*time.Minute {
		t.Errorf("the token is good for %v", got)
	}
	again := must(c.CreateSession(t.Context(), req))(t)
	if got := again.GetTokens().GetAccessExpiresIn().AsDuration(); got <= 0 || got > 15*time.Minute {
		t.Errorf("again it is good for %v", got)
	}
	same(t, "the retry", again, res)
	if s := res.GetSession(); s.GetOwner() != string(ada) || s.GetUpdateTime() == nil || s.GetVersion() == 0 {
		t.Errorf("the session is %v", s)
	}
}
