// Package session is the SessionManager: who is signed in, on what devices, about what, and who holds the microphone.
// The rules are methods of book and plain functions over a user's sessions; the object runtime makes what they come to
// durable. What a token is, and what it is worth, is in the package credential.
package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	errorv1 "holdfast/gen/holdfast/error/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/mask"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// state is what a user's sessions store, and settings what a tenant's settings do.
type (
	state    = *storev1.UserSessions
	settings = *storev1.SessionSettings
)

// inEvents is the collection of a user's security events; its keys are their seqs.
const inEvents = "security_events"

// keepFor is how long a user's audit is kept after the last event.
const keepFor = 90 * 24 * time.Hour

// settingsID is the id of the one settings object of a tenant.
const settingsID = object.ID("settings")

// errIDTaken is a random id that was drawn twice.
var errIDTaken = problem.Later(errorv1.Reason_REASON_CONTENTION, "the id that was drawn is taken; try again", 100*time.Millisecond)

// errTokensGone refuses a retry whose first answer cannot be given again.
var errTokensGone = problem.New(errorv1.Reason_REASON_TOKENS_GONE,
	"the tokens that were issued before cannot be given again: they were refreshed since, or issued for another credential or under another key; make another session")

// limitError refuses a sign-in at the limit of sessions.
type limitError struct{ limit int }

func (e limitError) Error() string { return fmt.Sprintf("the user has %d sessions", e.limit) }

// Kinds are what the manager keeps.
type Kinds struct {
	Users    *object.Kind[state]
	Settings *object.Kind[settings]
}

// Register adds the manager's kinds to the runtime.
func Register(rt *object.Runtime) Kinds {
	return Kinds{
		Users: object.Register(rt, object.KindConfig[state]{
			Name: "user_sessions", SchemaVersion: 1, TTL: keepFor,
			Collections: map[string]proto.Message{inEvents: &storev1.SecurityEvent{}},
			OnTimer:     onTime,
			NoRestore:   true,
			Unmetered:   true,
			// What matters of it for longer is in inEvents.
			BriefJournal: true,
		}),
		Settings: object.Register(rt, object.KindConfig[settings]{
			Name: "session_settings", SchemaVersion: 1, Users: object.UsersNever, Unmetered: true,
		}),
	}
}

// Manager serves SessionService. It is safe for concurrent use.
type Manager struct {
	kinds     Kinds
	calls     Calls
	box       *seal.Box
	endAtOnce int
}

var _ sessionv1connect.SessionServiceHandler = (*Manager)(nil)

// Calls are the live connections that sessions have.
type Calls interface {
	// EndSessions ends those of sessions of a user.
	EndSessions(ctx context.Context, user identity.User, sessions []string) error
}

// NewManager returns a manager of these kinds, which ends the calls of sessions that end, and seals in this box.
func NewManager(kinds Kinds, calls Calls, box *seal.Box) *Manager {
	return &Manager{kinds: kinds, calls: calls, box: box, endAtOnce: 10_000}
}

// hangUp ends the live connections of sessions that have ended. It does what it can: where it fails, the lease ends the connection,
// which is never longer than the session.
func (m *Manager) hangUp(ctx context.Context, gone ended) {
	caller, err := identity.From(ctx)
	if err != nil || len(gone.sessions) == 0 {
		return
	}
	_ = m.calls.EndSessions(identity.With(ctx, identity.Identity{Tenant: caller.Tenant, Service: true}), identity.User(gone.user), gone.sessions)
}

// CreateSession implements SessionService.
func (m *Manager) CreateSession(ctx context.Context, req *sessionv1.CreateSessionRequest) (*sessionv1.CreateSessionResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if caller.Session != "" {
		return nil, problem.PermissionDenied("a session's token cannot make another session; sign in with the application's own credential")
	}
	asUser, user, err := subject(ctx, req.GetUser())
	if err != nil {
		return nil, err
	}
	presented, ok := credential.From(ctx)
	if !ok {
		return nil, identity.ErrAbsent
	}
	set, err := m.settings(ctx)
	if err != nil {
		return nil, err
	}
	id := credential.ObjectID(caller.Tenant, user)
	session := credential.NewSessionID(id, random(credential.SessionRandomLen))
	in := signIn{
		id: session, salt: newSalt(m.box, session),
		familyKey: random(credential.FamilyKeyLen), key: presented.Key, user: string(user), settings: set, device: req.GetDevice(),
		conversation: req.GetActiveConversationId(), project: req.GetActiveProjectId(), replaces: req.GetReplaceSessionId(),
	}
	var gone ended
	var issued *sessionv1.Tokens
	res, err := object.Do(asUser, m.kinds.Users, object.ID(id), req, func(tx *object.Tx[state]) (*sessionv1.CreateSessionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(caller))
		ended, err := b.signIn(in)
		if err != nil {
			return nil, err
		}
		gone, issued = b.gone, b.tokens(in.id, in.key, m.box)
		b.commit(tx)
		// The tokens are not part of the reply, which the journal keeps for retries.
		return &sessionv1.CreateSessionResponse{Session: b.present(in.id, "", tx.Info()), EndedSessionIds: ended}, nil
	}, object.Upsert())
	if full, ok := errors.AsType[limitError](err); ok {
		return nil, m.signInRefused(asUser, id, caller, full)
	}
	if err != nil {
		return nil, err
	}
	if res.GetSession().GetSessionId() != in.id {
		return m.signedInBefore(asUser, object.ID(id), res, in.key)
	}
	m.hangUp(asUser, gone)
	res.Tokens = issued
	return res, nil
}

// signInRefused notes a sign-in that was refused.
func (m *Manager) signInRefused(ctx context.Context, id string, caller identity.Identity, full limitError) error {
	_, err := m.kinds.Users.Update(ctx, object.ID(id), func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), actor(caller))
		b.record(&storev1.SecurityEvent{Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_SIGN_IN_REFUSED})
		b.commit(tx)
		return nil
	})
	if err != nil {
		return err
	}
	return problem.LimitReached("user", "sessions", full.limit, fmt.Sprintf("the user has %d sessions, and the tenant allows no more; end one", full.limit), time.Minute)
}

// signedInBefore answers a retry: the session is that of the first time, and so are the tokens, if the credential is.
func (m *Manager) signedInBefore(
	ctx context.Context, id object.ID, res *sessionv1.CreateSessionResponse, key [32]byte,
) (*sessionv1.CreateSessionResponse, error) {
	s, err := m.kinds.Users.View(ctx, id)
	if err != nil {
		return nil, err
	}
	r := s.State.GetSessions()[res.GetSession().GetSessionId()]
	if r.GetEnd() == nil && r.GetGeneration() == 1 {
		b := &book{s: s.State, now: m.kinds.Users.Now()}
		res.Tokens = b.tokens(res.GetSession().GetSessionId(), key, m.box)
	}
	if res.GetTokens() == nil {
		return nil, errTokensGone
	}
	return res, nil
}

// RefreshSession implements SessionService.
func (m *Manager) RefreshSession(ctx context.Context, _ *sessionv1.RefreshSessionRequest) (*sessionv1.RefreshSessionResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	presented, _ := credential.From(ctx)
	t := presented.Refresh
	if t.Class != credential.Refresh {
		return nil, problem.New(credential.Invalid, "send the refresh token as the header `Authorization: Bearer hfr_…`; nothing else is exchanged")
	}
	set, err := m.settings(ctx)
	if err != nil {
		return nil, err
	}
	salt := newSalt(m.box, t.Session)
	var res *sessionv1.RefreshSessionResponse
	var gone ended
	_, err = m.kinds.Users.Update(ctx, object.ID(credential.ObjectOf(t.Session)), func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), actor(caller))
		issued, err := b.refresh(t, salt, set, m.box)
		if err != nil {
			return err
		}
		b.commit(tx)
		gone = b.gone
		res = &sessionv1.RefreshSessionResponse{Session: b.present(t.Session, t.Session, tx.Info()), Tokens: issued}
		return nil
	})
	if errors.Is(err, object.ErrNotFound) {
		err = credential.Unknown()
	}
	if err != nil {
		return nil, err
	}
	m.hangUp(ctx, gone)
	if res.GetTokens() == nil {
		return nil, credential.Refusal(storev1.EndReason_END_REASON_REUSE_DETECTED)
	}
	return res, nil
}

// GetSession implements SessionService.
func (m *Manager) GetSession(ctx context.Context, req *sessionv1.GetSessionRequest) (*sessionv1.GetSessionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	s, b, err := m.read(ctx, at.object)
	if err != nil {
		return nil, err
	}
	if b.s.GetSessions()[at.session] == nil {
		return nil, object.ErrNotFound
	}
	if v := req.IfVersionNot; v != nil && *v == int64(s.Version) {
		// Time may have brought something since that nobody has written yet.
		if next := open(proto.CloneOf(s.State), s.UpdateTime, server).next(); next.IsZero() || next.After(b.now) {
			return &sessionv1.GetSessionResponse{NotModified: true}, nil
		}
	}
	return &sessionv1.GetSessionResponse{Session: b.present(at.session, at.caller.Session, s.Info)}, nil
}

// ListSessions implements SessionService.
func (m *Manager) ListSessions(ctx context.Context, req *sessionv1.ListSessionsRequest) (*sessionv1.ListSessionsResponse, error) {
	asUser, user, err := subject(ctx, req.GetUser())
	if err != nil {
		return nil, err
	}
	caller, err := identity.From(asUser)
	if err != nil {
		return nil, err
	}
	s, b, err := m.read(asUser, object.ID(credential.ObjectID(caller.Tenant, user)))
	if errors.Is(err, object.ErrNotFound) {
		return &sessionv1.ListSessionsResponse{}, nil // who never signed in has no sessions
	}
	if err != nil {
		return nil, err
	}
	after, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	var places []string
	for id, r := range b.s.GetSessions() {
		if place := newestFirst(r, id); place > after && (r.GetEnd() == nil || req.GetIncludeEnded()) {
			places = append(places, place)
		}
	}
	slices.Sort(places)
	res := &sessionv1.ListSessionsResponse{Presence: b.presence()}
	if size := cmp.Or(int(req.GetPageSize()), object.DefaultPageSize); size < len(places) {
		places = places[:size]
		res.NextPageToken = rpc.Token(req, places[size-1])
	}
	for _, place := range places {
		res.Sessions = append(res.Sessions, b.present(place[placeLen:], caller.Session, s.Info))
	}
	return res, nil
}

// UpdateSession implements SessionService.
func (m *Manager) UpdateSession(ctx context.Context, req *sessionv1.UpdateSessionRequest) (*sessionv1.UpdateSessionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	return object.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.UpdateSessionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		r, err := b.session(at.session)
		if err != nil {
			return nil, err
		}
		want := b.present(at.session, "", object.Info{})
		if err := mask.Merge(want, req.GetSession(), req.GetUpdateMask(), "active_conversation_id", "active_project_id", "labels"); err != nil {
			return nil, err
		}
		if len(want.GetLabels()) > maxLabels {
			return nil, problem.InvalidArgument("session.labels", "must have at most 8 keys, with those that the session has already")
		}
		b.update(r, want, req.GetSession())
		b.touch(r)
		b.commit(tx)
		return &sessionv1.UpdateSessionResponse{Session: b.present(at.session, at.caller.Session, tx.Info())}, nil
	})
}

// EndSessions implements SessionService.
func (m *Manager) EndSessions(ctx context.Context, req *sessionv1.EndSessionsRequest) (*sessionv1.EndSessionsResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkEnd(req); err != nil {
		return nil, err
	}
	switch req.GetScope() {
	case sessionv1.EndScope_END_SCOPE_TENANT:
		return m.endAll(ctx, caller)
	case sessionv1.EndScope_END_SCOPE_OTHERS, sessionv1.EndScope_END_SCOPE_USER:
		except := ""
		if req.GetScope() == sessionv1.EndScope_END_SCOPE_OTHERS {
			if except = caller.Session; except == "" {
				return nil, problem.InvalidArgument("scope", "END_SCOPE_OTHERS needs a session's token: the call is made with none, so there is no current session")
			}
		}
		asUser, user, err := subject(ctx, req.GetUser())
		if err != nil {
			return nil, err
		}
		res, err := m.end(asUser, object.ID(credential.ObjectID(caller.Tenant, user)), req, actor(caller), func(b *book) ([]string, error) {
			return b.revoke(except), nil
		})
		if errors.Is(err, object.ErrNotFound) {
			return &sessionv1.EndSessionsResponse{}, nil // who never signed in has none
		}
		return res, err
	default:
		return m.endNamed(ctx, req, caller)
	}
}

// checkEnd refuses what does not go with the scope.
func checkEnd(req *sessionv1.EndSessionsRequest) error {
	switch scope := req.GetScope(); {
	case len(req.GetSessionIds()) > 0 && scope > sessionv1.EndScope_END_SCOPE_NAMED:
		return problem.InvalidArgument("session_ids", "must be empty unless scope is END_SCOPE_NAMED")
	case req.GetUser() != "" && scope != sessionv1.EndScope_END_SCOPE_USER:
		return problem.InvalidArgument("user", "must be empty unless scope is END_SCOPE_USER")
	case req.IfVersion != nil && scope == sessionv1.EndScope_END_SCOPE_TENANT:
		return problem.InvalidArgument("if_version", "must be unset with END_SCOPE_TENANT, which ends the sessions of many users")
	}
	return nil
}

// endNamed ends the sessions that a request names, or the one whose token it was made with.
func (m *Manager) endNamed(ctx context.Context, req *sessionv1.EndSessionsRequest, caller identity.Identity) (*sessionv1.EndSessionsResponse, error) {
	named := req.GetSessionIds()
	if len(named) == 0 {
		if caller.Session == "" {
			return nil, problem.InvalidArgument("session_ids", "must be set: the call is made with no session's token")
		}
		named = []string{caller.Session}
	}
	id := credential.ObjectOf(named[0])
	for _, session := range named {
		if credential.ObjectOf(session) != id {
			return nil, problem.InvalidArgument("session_ids", "must all be of one user")
		}
	}
	why := storev1.EndReason_END_REASON_SIGNED_OUT
	if caller.Service {
		why = storev1.EndReason_END_REASON_REVOKED
	}
	return m.end(ctx, object.ID(id), req, actor(caller), func(b *book) ([]string, error) {
		var ended []string
		for _, session := range named {
			if b.s.GetSessions()[session] == nil {
				return nil, object.ErrNotFound
			}
			if b.end(session, why) {
				ended = append(ended, session)
			}
		}
		return ended, nil
	})
}

// end ends sessions of one user, with their live connections.
func (m *Manager) end(
	ctx context.Context, id object.ID, req *sessionv1.EndSessionsRequest, by string, end func(*book) ([]string, error),
) (*sessionv1.EndSessionsResponse, error) {
	var gone ended
	var replayed bool
	res, err := object.Do(ctx, m.kinds.Users, id, req, func(tx *object.Tx[state]) (*sessionv1.EndSessionsResponse, error) {
		b := open(tx.State(), tx.Now(), by)
		ended, err := end(b)
		if err != nil {
			return nil, err
		}
		b.commit(tx)
		gone = b.gone
		return &sessionv1.EndSessionsResponse{SessionIds: ended, SessionCount: int32(len(ended))}, nil //nolint:gosec // 50 at most
	}, object.Replayed(&replayed))
	if err != nil || replayed {
		return res, err
	}
	m.hangUp(ctx, gone)
	return res, nil
}

const (
	// usersAtOnce is how many users' sessions are ended side by side: together they share commits.
	usersAtOnce = 32
	// endedNamed is how many of the ended sessions are named.
	endedNamed = 1000
)

// endAll ends the sessions of the users of the tenant, page by page, until it has ended endAtOnce of them. A changed user moves
// to the front of the list, which was read already, so nobody is left out; who signs in meanwhile stays.
func (m *Manager) endAll(ctx context.Context, caller identity.Identity) (*sessionv1.EndSessionsResponse, error) {
	if !caller.Service {
		return nil, problem.PermissionDenied("only a service may end the sessions of all users")
	}
	res := &sessionv1.EndSessionsResponse{}
	for token := ""; ; {
		page, err := m.kinds.Users.List(ctx, object.ListOptions{PageSize: object.MaxPageSize, PageToken: token})
		if err != nil {
			return nil, err
		}
		ended := make([]*sessionv1.EndSessionsResponse, len(page.Items))
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(usersAtOnce)
		for i, s := range page.Items {
			if len((&book{s: s.State}).live()) == 0 {
				continue
			}
			group.Go(func() error {
				var err error
				ended[i], err = m.end(groupCtx, s.ID, &sessionv1.EndSessionsRequest{}, actor(caller), func(b *book) ([]string, error) { return b.revoke(""), nil })
				if errors.Is(err, object.ErrNotFound) {
					return nil // deleted since the list
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		for _, user := range ended {
			res.SessionCount += user.GetSessionCount()
			res.SessionIds = append(res.SessionIds, user.GetSessionIds()[:min(len(user.GetSessionIds()), endedNamed-len(res.GetSessionIds()))]...)
		}
		token = page.Next
		if res.More = token != "" && int(res.GetSessionCount()) >= m.endAtOnce; token == "" || res.GetMore() {
			return res, nil
		}
	}
}

// PutConnection implements SessionService.
func (m *Manager) PutConnection(ctx context.Context, req *sessionv1.PutConnectionRequest) (*sessionv1.PutConnectionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	id := req.GetConnection().GetConnectionId()
	opens := id == ""
	switch {
	case opens && req.GetClose():
		return nil, problem.InvalidArgument("connection.connection_id", "must be set to close a connection")
	case opens && req.GetConnection().GetModality() == typev1.Modality_MODALITY_UNSPECIFIED:
		return nil, problem.InvalidArgument("connection.modality", "must be set to open a connection; to keep one alive, set connection.connection_id")
	case opens:
		id = credential.EncodeID(random(10))
	}
	var set settings
	if opens || req.GetConnection().GetDevice() != nil { // a mere heartbeat does not need them
		if set, err = m.settings(ctx); err != nil {
			return nil, err
		}
	}
	var gone ended
	var replayed bool
	res, err := object.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.PutConnectionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		r, err := b.session(at.session)
		if err != nil {
			return nil, err
		}
		var c *storev1.Connection
		if opens {
			c, err = b.connect(id, at.session, set)
		} else {
			c, err = b.connection(id, at.session)
		}
		if err != nil {
			return nil, err
		}
		var there *sessionv1.Connection
		if req.GetClose() {
			b.disconnect(c)
		} else {
			if err := b.heartbeat(c); err != nil {
				return nil, err
			}
			b.change(c, req.GetConnection(), set)
			there = connection(c)
			there.ExpiresIn = b.expiresIn(c.GetExpireTime())
		}
		if opens || req.GetUserActive() {
			b.touch(r)
		}
		b.commit(tx)
		gone = b.gone
		return &sessionv1.PutConnectionResponse{Connection: there, Session: b.present(at.session, at.caller.Session, tx.Info())}, nil
	}, object.Replayed(&replayed))
	if err != nil || replayed {
		return res, err
	}
	m.hangUp(ctx, gone)
	return res, nil
}

// ListSecurityEvents implements SessionService.
func (m *Manager) ListSecurityEvents(
	ctx context.Context, req *sessionv1.ListSecurityEventsRequest,
) (*sessionv1.ListSecurityEventsResponse, error) {
	asUser, user, err := subject(ctx, req.GetUser())
	if err != nil {
		return nil, err
	}
	caller, err := identity.From(asUser)
	if err != nil {
		return nil, err
	}
	page, next, err := rpc.ListEntries(asUser, m.kinds.Users, object.ID(credential.ObjectID(caller.Tenant, user)), inEvents, req,
		object.EntriesOptions{Before: object.SeqKey(math.MaxInt64)})
	if errors.Is(err, object.ErrNotFound) {
		return &sessionv1.ListSecurityEventsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	res := &sessionv1.ListSecurityEventsResponse{NextPageToken: next}
	for _, e := range slices.Backward(rpc.Values[*storev1.SecurityEvent](page.Entries)) {
		res.Events = append(res.Events, securityEvent(e))
	}
	return res, nil
}

// PutSessionSettings implements SessionService.
func (m *Manager) PutSessionSettings(
	ctx context.Context, req *sessionv1.PutSessionSettingsRequest,
) (*sessionv1.PutSessionSettingsResponse, error) {
	if err := rpc.RequireService(ctx, "see and set the tenant's settings"); err != nil {
		return nil, err
	}
	if req.GetSettings() == nil && len(req.GetUpdateMask().GetPaths()) == 0 {
		s, err := m.kinds.Settings.View(ctx, settingsID)
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			return nil, err
		}
		return &sessionv1.PutSessionSettingsResponse{Settings: presentSettings(effective(s.State)), Version: int64(s.Version)}, nil
	}
	return object.Do(ctx, m.kinds.Settings, settingsID, req, func(tx *object.Tx[settings]) (*sessionv1.PutSessionSettingsResponse, error) {
		want := presentSettings(tx.State())
		if err := mask.Merge(want, req.GetSettings(), req.GetUpdateMask(), settingNames...); err != nil {
			return nil, err
		}
		all := effective(storedSettings(want))
		if err := checkSettings(all); err != nil {
			return nil, err
		}
		proto.Reset(tx.State())
		proto.Merge(tx.State(), storedSettings(want))
		return &sessionv1.PutSessionSettingsResponse{Settings: presentSettings(all), Version: int64(tx.Info().Version)}, nil
	}, object.Upsert())
}

// Touch notes that the session's user did something. A session that is over, or is active as far as is written, stays as
// it is.
func (m *Manager) Touch(ctx context.Context, who identity.Identity) error {
	_, err := m.kinds.Users.Update(identity.With(ctx, who), object.ID(credential.ObjectOf(who.Session)), func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), actor(who))
		if r, err := b.session(who.Session); err == nil {
			b.touch(r)
		}
		b.commit(tx)
		return nil
	})
	return err
}

// Refused notes in the audit of a session's user that credentials which name the session were wrong.
func (m *Manager) Refused(ctx context.Context, whose identity.Identity, count int64) error {
	_, err := m.kinds.Users.Update(identity.With(ctx, whose), object.ID(credential.ObjectOf(whose.Session)), func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), server)
		b.refused(whose.Session, int32(min(count, math.MaxInt32))) //nolint:gosec // bounded
		b.commit(tx)
		return nil
	})
	return err
}

// settings are the tenant's, with the defaults for what it did not set.
func (m *Manager) settings(ctx context.Context) (settings, error) {
	s, err := m.kinds.Settings.View(ctx, settingsID)
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return nil, err
	}
	return effective(s.State), nil
}

// read is a user's sessions as they are now: what time has brought and nobody has written yet is in it.
func (m *Manager) read(ctx context.Context, id object.ID) (object.Snapshot[state], *book, error) {
	s, err := m.kinds.Users.View(ctx, id)
	if err != nil {
		return s, nil, err
	}
	return s, open(proto.CloneOf(s.State), m.kinds.Users.Now(), server), nil
}

// subject is the user whom a call is about, and a context that acts as that user.
func subject(ctx context.Context, named string) (context.Context, identity.User, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, "", err
	}
	user := identity.User(named)
	switch {
	case user == "" && caller.User == "":
		return nil, "", problem.InvalidArgument("user", "must be set: a service that acts for nobody has to say whom it means")
	case user == "":
		user = caller.User
	case caller.User != "" && user != caller.User:
		return nil, "", problem.PermissionDenied("only a service may name another user")
	case !user.Valid():
		return nil, "", problem.InvalidArgument("user", "must be 1 to 128 bytes, without control characters")
	}
	as := identity.Identity{Tenant: caller.Tenant, User: user, Session: caller.Session}
	return identity.With(ctx, as), user, nil
}

// place is where a session is, and who asks for it.
type place struct {
	caller  identity.Identity
	object  object.ID
	session string
}

// locate finds the session that a request names, or the one whose token it was made with.
func locate(ctx context.Context, named string) (place, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return place{}, err
	}
	if named == "" {
		named = caller.Session
	}
	if named == "" {
		return place{}, problem.InvalidArgument("session_id", "must be set: the call is made with no session's token")
	}
	id := credential.ObjectOf(named)
	if id == "" {
		return place{}, object.ErrNotFound
	}
	return place{caller, object.ID(id), named}, nil
}

// actor is how the audit names a caller.
func actor(i identity.Identity) string {
	if i.User == "" {
		return "service"
	}
	return string(i.User)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
