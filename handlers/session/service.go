// Package session is the SessionManager: who is signed in, on what devices, about what, and who holds the microphone.
// The rules are methods of book and plain functions over a user's sessions; the object runtime makes what they come to
// durable. What a token is, and what it is worth, is in the package credential.
package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	storev1 "holdfast/gen/holdfast/store/session/v1"
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
		}),
		Settings: object.Register(rt, object.KindConfig[settings]{
			Name: "session_settings", SchemaVersion: 1, Users: object.UsersNever, Unmetered: true,
		}),
	}
}

// Manager serves SessionService. It is safe for concurrent use.
type Manager struct {
	kinds         Kinds
	conversations *object.Kind[*conversationv1.ConversationState]
	box           *seal.Box
}

var _ sessionv1connect.SessionServiceHandler = (*Manager)(nil)

// NewManager returns a manager of these kinds, which gives the floor of these conversations, and seals in this box.
func NewManager(kinds Kinds, conversations *object.Kind[*conversationv1.ConversationState], box *seal.Box) *Manager {
	return &Manager{kinds: kinds, conversations: conversations, box: box}
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
		conversation: req.GetActiveConversationId(), project: req.GetActiveProjectId(), replaces: req.GetReplacesSessionId(),
	}
	var freed []*storev1.FloorHold
	var issued *sessionv1.Tokens
	res, err := rpc.Do(asUser, m.kinds.Users, object.ID(id), req, func(tx *object.Tx[state]) (*sessionv1.CreateSessionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(caller))
		evicted, err := b.signIn(in)
		if err != nil {
			return nil, err
		}
		freed, issued = b.freed, tokens(in.id, b.s.GetSessions()[in.id], in.key, m.box)
		b.commit(tx)
		// The tokens are not part of the reply, which the journal keeps for retries.
		return &sessionv1.CreateSessionResponse{Session: b.present(in.id, ""), EvictedSessionIds: evicted}, nil
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
	m.free(asUser, freed)
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
		res.Tokens = tokens(res.GetSession().GetSessionId(), r, key, m.box)
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
	var freed []*storev1.FloorHold
	_, err = m.kinds.Users.Update(ctx, object.ID(credential.ObjectOf(t.Session)), func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), actor(caller))
		issued, err := b.refresh(t, salt, set, m.box)
		if err != nil {
			return err
		}
		b.commit(tx)
		freed = b.freed
		res = &sessionv1.RefreshSessionResponse{Session: b.present(t.Session, t.Session), Tokens: issued, Metadata: rpc.Metadata(tx.Info())}
		return nil
	})
	if errors.Is(err, object.ErrNotFound) {
		err = credential.Unknown()
	}
	if err != nil {
		return nil, err
	}
	m.free(ctx, freed)
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
	return &sessionv1.GetSessionResponse{Session: b.present(at.session, at.caller.Session), Metadata: rpc.Metadata(s.Info)}, nil
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
	res := &sessionv1.ListSessionsResponse{Metadata: rpc.Metadata(s.Info)}
	for id, r := range b.s.GetSessions() {
		if r.GetEnd() == nil || req.GetIncludeEnded() {
			res.Sessions = append(res.Sessions, b.present(id, caller.Session))
		}
	}
	slices.SortFunc(res.GetSessions(), newestFirst)
	return res, nil
}

// UpdateSession implements SessionService.
func (m *Manager) UpdateSession(ctx context.Context, req *sessionv1.UpdateSessionRequest) (*sessionv1.UpdateSessionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	has := rpc.MaskHas(req.GetUpdateMask())
	var conversation, project *string
	if has("active_conversation_id") {
		conversation = &req.ActiveConversationId
	}
	if has("active_project_id") {
		project = &req.ActiveProjectId
	}
	return rpc.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.UpdateSessionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		r, err := b.session(at.session)
		if err != nil {
			return nil, err
		}
		b.setActive(r, conversation, project)
		b.touch(r)
		b.commit(tx)
		return &sessionv1.UpdateSessionResponse{Session: b.present(at.session, at.caller.Session)}, nil
	})
}

// EndSession implements SessionService.
func (m *Manager) EndSession(ctx context.Context, req *sessionv1.EndSessionRequest) (*sessionv1.EndSessionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	why := storev1.EndReason_END_REASON_SIGNED_OUT
	if at.caller.Service {
		why = storev1.EndReason_END_REASON_REVOKED
	}
	var freed []*storev1.FloorHold
	var replayed bool
	res, err := rpc.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.EndSessionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		if b.s.GetSessions()[at.session] == nil {
			return nil, object.ErrNotFound
		}
		b.end(at.session, why)
		b.commit(tx)
		freed = b.freed
		return &sessionv1.EndSessionResponse{Session: b.present(at.session, at.caller.Session)}, nil
	}, object.Replayed(&replayed))
	if err != nil || replayed {
		return res, err
	}
	m.free(ctx, freed)
	return res, nil
}

// RevokeSessions implements SessionService.
func (m *Manager) RevokeSessions(ctx context.Context, req *sessionv1.RevokeSessionsRequest) (*sessionv1.RevokeSessionsResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetAllUsers() {
		return m.revokeAll(ctx, caller)
	}
	asUser, user, err := subject(ctx, req.GetUser())
	if err != nil {
		return nil, err
	}
	except := ""
	if req.GetExceptCurrent() {
		if caller.Session == "" {
			return nil, problem.InvalidArgument("except_current", "the call is made with no session's token, so there is no current session")
		}
		except = caller.Session
	}
	var freed []*storev1.FloorHold
	var replayed bool
	res, err := rpc.Do(asUser, m.kinds.Users, object.ID(credential.ObjectID(caller.Tenant, user)), req,
		func(tx *object.Tx[state]) (*sessionv1.RevokeSessionsResponse, error) {
			b := open(tx.State(), tx.Now(), actor(caller))
			ended := b.revoke(except)
			b.commit(tx)
			freed = b.freed
			return &sessionv1.RevokeSessionsResponse{SessionIds: ended, SessionCount: int64(len(ended))}, nil
		}, object.Replayed(&replayed))
	if errors.Is(err, object.ErrNotFound) {
		return &sessionv1.RevokeSessionsResponse{}, nil // who never signed in has none
	}
	if err != nil || replayed {
		return res, err
	}
	m.free(asUser, freed)
	return res, nil
}

const (
	// revokeAtOnce is how many users' sessions are ended side by side: together they share commits.
	revokeAtOnce = 32
	// revokedNamed is how many of them are named.
	revokedNamed = 1000
)

// revokeAll ends the sessions of every user of the tenant, page by page. Who is changed moves to the front of the list,
// which was read already, so nobody is left out; who signs in meanwhile stays.
func (m *Manager) revokeAll(ctx context.Context, caller identity.Identity) (*sessionv1.RevokeSessionsResponse, error) {
	if !caller.Service {
		return nil, problem.PermissionDenied("only a service may end the sessions of all users")
	}
	res := &sessionv1.RevokeSessionsResponse{}
	for token := ""; ; {
		page, err := m.kinds.Users.List(ctx, object.ListOptions{PageSize: object.MaxPageSize, PageToken: token})
		if err != nil {
			return nil, err
		}
		ended := make([][]string, len(page.Items))
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(revokeAtOnce)
		for i, s := range page.Items {
			group.Go(func() error {
				var err error
				ended[i], err = m.revokeUser(groupCtx, s.ID, caller)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		for _, ids := range ended {
			res.SessionCount += int64(len(ids))
			res.SessionIds = append(res.SessionIds, ids[:min(len(ids), revokedNamed-len(res.GetSessionIds()))]...)
		}
		if token = page.Next; token == "" {
			return res, nil
		}
	}
}

func (m *Manager) revokeUser(ctx context.Context, id object.ID, caller identity.Identity) ([]string, error) {
	var ended []string
	var freed []*storev1.FloorHold
	_, err := m.kinds.Users.Update(ctx, id, func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), actor(caller))
		ended = b.revoke("")
		b.commit(tx)
		freed = b.freed
		return nil
	})
	if errors.Is(err, object.ErrNotFound) {
		return nil, nil // deleted since the list
	}
	m.free(ctx, freed)
	return ended, err
}

// OpenConnection implements SessionService.
func (m *Manager) OpenConnection(ctx context.Context, req *sessionv1.OpenConnectionRequest) (*sessionv1.OpenConnectionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	set, err := m.settings(ctx)
	if err != nil {
		return nil, err
	}
	id := credential.EncodeID(random(10))
	return rpc.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.OpenConnectionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		r, err := b.session(at.session)
		if err != nil {
			return nil, err
		}
		c, err := b.connect(id, at.session, req, set)
		if err != nil {
			return nil, err
		}
		b.touch(r)
		b.commit(tx)
		return &sessionv1.OpenConnectionResponse{Connection: c, Session: b.present(at.session, at.caller.Session)}, nil
	})
}

// HeartbeatConnection implements SessionService.
func (m *Manager) HeartbeatConnection(
	ctx context.Context, req *sessionv1.HeartbeatConnectionRequest,
) (*sessionv1.HeartbeatConnectionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.HeartbeatConnectionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		r, err := b.session(at.session)
		if err != nil {
			return nil, err
		}
		c, err := b.connection(req.GetConnectionId(), at.session)
		if err != nil {
			return nil, err
		}
		if err := b.heartbeat(c, req.GetModality()); err != nil {
			return nil, err
		}
		if req.GetUserActive() {
			b.touch(r)
		}
		b.commit(tx)
		return &sessionv1.HeartbeatConnectionResponse{Connection: c}, nil
	})
}

// CloseConnection implements SessionService.
func (m *Manager) CloseConnection(ctx context.Context, req *sessionv1.CloseConnectionRequest) (*sessionv1.CloseConnectionResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	var freed []*storev1.FloorHold
	var replayed bool
	res, err := rpc.Do(ctx, m.kinds.Users, at.object, req, func(tx *object.Tx[state]) (*sessionv1.CloseConnectionResponse, error) {
		b := open(tx.State(), tx.Now(), actor(at.caller))
		c, err := b.connection(req.GetConnectionId(), at.session)
		if err != nil {
			return nil, err
		}
		b.disconnect(c)
		b.commit(tx)
		freed = b.freed
		return &sessionv1.CloseConnectionResponse{}, nil
	}, object.Replayed(&replayed))
	if err != nil || replayed {
		return res, err
	}
	m.free(ctx, freed)
	return res, nil
}

// GetPresence implements SessionService.
func (m *Manager) GetPresence(ctx context.Context, req *sessionv1.GetPresenceRequest) (*sessionv1.GetPresenceResponse, error) {
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
		return &sessionv1.GetPresenceResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return b.presence(s.Info), nil
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
	before := req.GetBeforeSeq()
	if before == 0 {
		before = 1 << 62
	}
	page, err := m.kinds.Users.Entries(asUser, object.ID(credential.ObjectID(caller.Tenant, user)), inEvents,
		object.EntriesOptions{PageSize: int(req.GetPageSize()), Before: object.SeqKey(before)})
	if errors.Is(err, object.ErrNotFound) {
		return &sessionv1.ListSecurityEventsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	res := &sessionv1.ListSecurityEventsResponse{HasMore: page.More, Metadata: rpc.Metadata(page.Info)}
	for _, e := range slices.Backward(page.Entries) {
		if v, ok := e.Value.(*storev1.SecurityEvent); ok {
			res.Events = append(res.Events, v)
		}
	}
	return res, nil
}

// ConfigureSessions implements SessionService.
func (m *Manager) ConfigureSessions(
	ctx context.Context, req *sessionv1.ConfigureSessionsRequest,
) (*sessionv1.ConfigureSessionsResponse, error) {
	if err := servicesOnly(ctx); err != nil {
		return nil, err
	}
	all := effective(req.GetSettings())
	if err := checkSettings(all); err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.kinds.Settings, settingsID, req, func(tx *object.Tx[settings]) (*sessionv1.ConfigureSessionsResponse, error) {
		s := tx.State()
		proto.Reset(s)
		proto.Merge(s, req.GetSettings())
		return &sessionv1.ConfigureSessionsResponse{Settings: all}, nil
	}, object.Upsert())
}

// GetSessionSettings implements SessionService.
func (m *Manager) GetSessionSettings(
	ctx context.Context, _ *sessionv1.GetSessionSettingsRequest,
) (*sessionv1.GetSessionSettingsResponse, error) {
	if err := servicesOnly(ctx); err != nil {
		return nil, err
	}
	s, err := m.kinds.Settings.View(ctx, settingsID)
	if errors.Is(err, object.ErrNotFound) {
		return &sessionv1.GetSessionSettingsResponse{Settings: defaults()}, nil
	}
	if err != nil {
		return nil, err
	}
	return &sessionv1.GetSessionSettingsResponse{Settings: effective(s.State), Metadata: rpc.Metadata(s.Info)}, nil
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
		b.refused(whose.Session, count)
		b.commit(tx)
		return nil
	})
	return err
}

// settings are the tenant's, with the defaults for what it did not set.
func (m *Manager) settings(ctx context.Context) (settings, error) {
	s, err := m.kinds.Settings.View(ctx, settingsID)
	if errors.Is(err, object.ErrNotFound) {
		return defaults(), nil
	}
	if err != nil {
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

func servicesOnly(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if !caller.Service {
		return problem.PermissionDenied("only a service key may see and set the tenant's settings")
	}
	return nil
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
