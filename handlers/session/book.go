package session

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
	"holdfast/object"
	"holdfast/seal"
)

// The bounds of what one user's object holds.
const (
	maxConnections = 32
	// maxSilent is how many connections are remembered that have fallen silent and may come back.
	maxSilent  = 16
	maxEnded   = 20
	keepEnded  = 24 * time.Hour
	keepEvents = 10_000
	maxLabels  = 8
)

// announceBefore is how long before a session's absolute end its watchers are told.
const announceBefore = 5 * time.Minute

// server is the actor of what nobody asked for.
const server = "server"

// ended are sessions of a user that have ended.
type ended struct {
	user     string
	sessions []string
}

// book is one change of a user's sessions: the rules write into it, and commit stages what came of it. It is used once.
type book struct {
	s     state
	now   time.Time
	actor string

	events []*storev1.SecurityEvent
	// gone are the sessions that the change has ended.
	gone    ended
	changed bool
}

// open begins a change, and writes down what time has brought.
func open(s state, now time.Time, actor string) *book {
	if s.Sessions == nil {
		s.Sessions = map[string]*storev1.SessionRecord{}
	}
	if s.Connections == nil {
		s.Connections = map[string]*storev1.Connection{}
	}
	b := &book{s: s, now: now, actor: actor}
	b.settle()
	return b
}

// settle ends the sessions whose time is over, forgets those that ended long ago, and announces ends that are near.
func (b *book) settle() {
	actor := b.actor
	b.actor = server
	defer func() { b.actor = actor }()
	for _, id := range slices.Sorted(maps.Keys(b.s.GetSessions())) {
		r := b.s.GetSessions()[id]
		if r.GetEnd() != nil {
			continue
		}
		if why, over := credential.Ended(r, b.now); over {
			b.end(id, why)
		} else if !r.GetExpiryAnnounced() && !b.now.Before(announceTime(r)) {
			r.ExpiryAnnounced, b.changed = true, true
		}
	}
	b.forgetEnded()
}

func announceTime(r *storev1.SessionRecord) time.Time {
	return r.GetExpireTime().AsTime().Add(-announceBefore)
}

// forgetEnded keeps the newest of the sessions that are over, for a while.
func (b *book) forgetEnded() {
	var over []string
	for id, r := range b.s.GetSessions() {
		if r.GetEnd() != nil {
			over = append(over, id)
		}
	}
	ended := func(id string) time.Time { return b.s.GetSessions()[id].GetEnd().GetEndTime().AsTime() }
	slices.SortFunc(over, func(a, c string) int { return cmp.Or(ended(c).Compare(ended(a)), cmp.Compare(a, c)) })
	for i, id := range over {
		if i >= maxEnded || b.now.Sub(ended(id)) >= keepEnded {
			delete(b.s.Sessions, id)
			b.changed = true
		}
	}
}

// commit stages the change: what was recorded, and the timer for what time will bring next.
func (b *book) commit(tx *object.Tx[state]) {
	for _, e := range b.events {
		tx.Put(inEvents, object.SeqKey(int64(e.GetSeq())), e)
		if old := e.GetSeq() - keepEvents; old > 0 {
			tx.DeleteEntry(inEvents, object.SeqKey(int64(old)))
		}
	}
	if !b.changed {
		tx.Unchanged()
		return
	}
	next, at := b.next(), time.Time{}
	if set, ok := tx.Timer(wake); ok {
		at = set
	}
	switch {
	case next.IsZero() && !at.IsZero():
		tx.ClearTimer(wake)
	case !next.IsZero() && !next.Equal(at):
		tx.SetTimer(wake, next)
	}
}

// wake is the timer that brings what time brings.
const wake = "wake"

// onTime is what happens then: open has written it down.
func onTime(tx *object.Tx[state], _ string) error {
	b := open(tx.State(), tx.Now(), server)
	b.changed = true // the timer is gone, and a change that changes nothing would bring it back
	b.commit(tx)
	return nil
}

// record adds a line to the audit.
func (b *book) record(e *storev1.SecurityEvent) {
	b.s.EventCount++
	e.Seq, e.EventTime, e.Actor = b.s.GetEventCount(), timestamppb.New(b.now), b.actor
	b.events, b.changed = append(b.events, e), true
}

// session is a session that is not over, or the reason why there is none.
func (b *book) session(id string) (*storev1.SessionRecord, error) {
	r := b.s.GetSessions()[id]
	if r == nil {
		return nil, object.ErrNotFound
	}
	if r.GetEnd() != nil {
		return nil, problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, "the session is over")
	}
	return r, nil
}

// live are the ids of the sessions that are not over, the oldest first.
func (b *book) live() []string {
	var ids []string
	for id, r := range b.s.GetSessions() {
		if r.GetEnd() == nil {
			ids = append(ids, id)
		}
	}
	created := func(id string) time.Time { return b.s.GetSessions()[id].GetCreateTime().AsTime() }
	slices.SortFunc(ids, func(a, c string) int { return cmp.Or(created(a).Compare(created(c)), cmp.Compare(a, c)) })
	return ids
}

// end ends a session with its connections. It reports whether it did: one that is over stays as it is.
func (b *book) end(id string, why storev1.EndReason) bool {
	r := b.s.GetSessions()[id]
	if r.GetEnd() != nil {
		return false
	}
	b.gone.user, b.gone.sessions = b.s.GetUser(), append(b.gone.sessions, id)
	for _, c := range b.s.GetConnections() {
		if c.GetSessionId() == id {
			delete(b.s.Connections, c.GetConnectionId())
		}
	}
	r.End = &storev1.SessionEnd{Reason: why, EndTime: timestamppb.New(b.now)}
	// Its tokens make no more tokens. The hashes stay, so that their owner is told why they are refused.
	r.SealedSalt = nil
	b.record(&storev1.SecurityEvent{
		Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_SESSION_ENDED, SessionId: id, EndReason: why,
	})
	return true
}

// signIn is what a new session is made of.
type signIn struct {
	id        string
	salt      salt
	familyKey []byte
	// key is of the credential that the user signs in with.
	key      [32]byte
	user     string
	settings settings
	device   *typev1.Device
	// What the session is on; empty: what the user was last on.
	conversation, project string
	// replaces is a session that this one takes the place of.
	replaces string
}

// signIn makes a session, and returns those that ended for it. At the limit it ends the oldest ones, or is refused.
func (b *book) signIn(in signIn) (ended []string, err error) {
	if b.s.GetSessions()[in.id] != nil {
		return nil, errIDTaken
	}
	conversation, project := b.s.GetActiveConversationId(), b.s.GetActiveProjectId()
	if old := b.s.GetSessions()[in.replaces]; old != nil && old.GetEnd() == nil {
		conversation, project = old.GetActiveConversationId(), old.GetActiveProjectId()
		b.end(in.replaces, storev1.EndReason_END_REASON_REPLACED)
		ended = append(ended, in.replaces)
	}
	limit := int(in.settings.GetMaxSessions())
	if live := b.live(); len(live) >= limit {
		if in.settings.GetLimitPolicy() == storev1.SessionLimitPolicy_SESSION_LIMIT_POLICY_REFUSE {
			return nil, limitError{limit}
		}
		for _, id := range live[:len(live)-limit+1] {
			b.end(id, storev1.EndReason_END_REASON_EVICTED)
			ended = append(ended, id)
		}
	}
	b.s.User = in.user
	r := &storev1.SessionRecord{
		CreateTime: timestamppb.New(b.now), ActiveTime: timestamppb.New(b.now),
		ExpireTime:           timestamppb.New(b.now.Add(in.settings.GetAbsoluteTimeout().AsDuration())),
		FamilyKey:            in.familyKey,
		ActiveConversationId: cmp.Or(in.conversation, conversation),
		ActiveProjectId:      cmp.Or(in.project, project),
		Device:               keptDevice(in.device, in.settings),
		// An end that is near from the start is no news.
		ExpiryAnnounced: in.settings.GetAbsoluteTimeout().AsDuration() <= announceBefore,
	}
	b.s.ActiveConversationId, b.s.ActiveProjectId = r.GetActiveConversationId(), r.GetActiveProjectId()
	b.s.Sessions[in.id] = r
	b.issue(in.id, in.key, in.salt, in.settings)
	b.record(&storev1.SecurityEvent{
		Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_SIGNED_IN, SessionId: in.id, Device: r.GetDevice(),
	})
	return ended, nil
}

// issue makes the next pair of tokens of a session.
func (b *book) issue(id string, key [32]byte, salt salt, settings settings) {
	r := b.s.GetSessions()[id]
	r.Generation++
	r.SealedSalt, r.IssueTime = salt.sealed, timestamppb.New(b.now)
	r.IdleTimeout, r.RefreshGrace = settings.GetIdleTimeout(), settings.GetRefreshGrace()
	// A tenant that has tightened its settings means the sessions that there are, too.
	if end := r.GetCreateTime().AsTime().Add(settings.GetAbsoluteTimeout().AsDuration()); end.Before(r.GetExpireTime().AsTime()) {
		r.ExpireTime = timestamppb.New(end)
	}
	access, refresh := pair(id, r, key, salt.plain)
	// Requests with the old access token are on their way.
	old := b.now.Add(r.GetRefreshGrace().AsDuration())
	if r.GetAccessExpireTime().AsTime().Before(old) {
		old = r.GetAccessExpireTime().AsTime()
	}
	r.OldAccessHash, r.OldAccessExpireTime = r.GetAccessHash(), timestamppb.New(old)
	r.OldRefreshHash = r.GetRefreshHash()
	expire := b.now.Add(settings.GetAccessTtl().AsDuration())
	if r.GetExpireTime().AsTime().Before(expire) {
		expire = r.GetExpireTime().AsTime()
	}
	r.AccessHash, r.AccessExpireTime, r.RefreshHash = access.Hash(), timestamppb.New(expire), refresh.Hash()
	b.changed = true
}

// salt is what makes a pair of tokens unlike every other. In the state it is sealed: without the servers' key neither the
// database nor an old token of a session leads to a newer one.
type salt struct{ plain, sealed []byte }

func newSalt(box *seal.Box, session string) salt {
	s := salt{plain: random(credential.SaltLen)}
	s.sealed = box.Seal(s.plain, saltContext(session))
	return s
}

func saltContext(session string) []byte { return []byte("session salt\x00" + session) }

// pair makes the tokens of a session's newest generation for the credential with this key.
func pair(id string, r *storev1.SessionRecord, key [32]byte, salt []byte) (access, refresh credential.Token) {
	o := credential.Origin{Session: id, Generation: r.GetGeneration(), Key: key, Salt: salt, FamilyKey: r.GetFamilyKey()}
	return o.Issue(credential.Access), o.Issue(credential.Refresh)
}

// tokens gives the newest pair of a session, again or for the first time, to the credential that it was issued for; nil
// where this is another.
func (b *book) tokens(id string, key [32]byte, box *seal.Box) *sessionv1.Tokens {
	r := b.s.GetSessions()[id]
	plain, err := box.Open(r.GetSealedSalt(), saltContext(id))
	if err != nil {
		return nil
	}
	access, refresh := pair(id, r, key, plain)
	if !access.Matches(r.GetAccessHash()) || !refresh.Matches(r.GetRefreshHash()) {
		return nil
	}
	return &sessionv1.Tokens{
		AccessToken: access.Bearer(), AccessExpireTime: r.GetAccessExpireTime(), AccessExpiresIn: b.expiresIn(r.GetAccessExpireTime()),
		RefreshToken: refresh.Bearer(),
	}
}

// refresh exchanges a refresh token for a new pair. A retry within the grace gets the newest pair again. A reuse ends the
// session: then there are no tokens, and the change stands.
func (b *book) refresh(t credential.Token, salt salt, settings settings, box *seal.Box) (*sessionv1.Tokens, error) {
	r := b.s.GetSessions()[t.Session]
	newest, old := t.Matches(r.GetRefreshHash()), t.Matches(r.GetOldRefreshHash())
	if t.Class != credential.Refresh || !newest && !old && !t.Issued(r.GetFamilyKey()) {
		return nil, credential.Unknown()
	}
	if r.GetEnd() != nil {
		return nil, credential.Refusal(r.GetEnd().GetReason())
	}
	switch {
	case newest:
		b.issue(t.Session, t.Key(), salt, settings)
		b.record(&storev1.SecurityEvent{
			Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_TOKENS_REFRESHED, SessionId: t.Session, Generation: t.Generation(),
		})
		return b.tokens(t.Session, t.Key(), box), nil
	case old && b.now.Sub(r.GetIssueTime().AsTime()) <= r.GetRefreshGrace().AsDuration() && r.GetRefreshGrace().AsDuration() > 0:
		if again := b.tokens(t.Session, t.Key(), box); again != nil {
			return again, nil
		}
		// The salt was sealed under a key that this server does not have. That is no reason to suspect a thief.
		return nil, errTokensGone
	}
	b.record(&storev1.SecurityEvent{
		Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_REUSE_DETECTED, SessionId: t.Session, Generation: t.Generation(),
	})
	b.end(t.Session, storev1.EndReason_END_REASON_REUSE_DETECTED)
	return nil, nil
}

// revoke ends all sessions but one, which may be none, and returns those that it ended.
func (b *book) revoke(except string) []string {
	live := slices.DeleteFunc(b.live(), func(id string) bool { return id == except })
	for _, id := range live {
		b.end(id, storev1.EndReason_END_REASON_REVOKED)
	}
	return live
}

// touch notes that the user did something.
func (b *book) touch(r *storev1.SessionRecord) {
	if !b.now.Before(credential.Stale(r)) {
		r.ActiveTime, b.changed = timestamppb.New(b.now), true
	}
}

// update makes a session what it is wanted to be. What the request asks for is also what its user was last on.
func (b *book) update(r *storev1.SessionRecord, want, asked *sessionv1.Session) {
	if c := want.GetActiveConversationId(); c != r.GetActiveConversationId() || asked.GetActiveConversationId() != "" {
		r.ActiveConversationId, b.s.ActiveConversationId = c, c
	}
	if p := want.GetActiveProjectId(); p != r.GetActiveProjectId() || asked.GetActiveProjectId() != "" {
		r.ActiveProjectId, b.s.ActiveProjectId = p, p
	}
	r.Labels, b.changed = want.GetLabels(), true
}

// connect opens a connection of a session.
func (b *book) connect(id, session string, settings settings) (*storev1.Connection, error) {
	timeout := settings.GetConnectionTimeout()
	if err := b.room(timeout.AsDuration()); err != nil {
		return nil, err
	}
	if b.s.GetConnections()[id] != nil {
		return nil, errIDTaken
	}
	b.forgetSilent()
	c := &storev1.Connection{ConnectionId: id, SessionId: session, OpenTime: timestamppb.New(b.now), Timeout: timeout}
	b.beat(c)
	b.s.Connections[id] = c
	return c, nil
}

// room refuses one more connection where the user has too many.
func (b *book) room(timeout time.Duration) error {
	if len(b.connections()) < maxConnections {
		return nil
	}
	return problem.LimitReached("user", "connections", maxConnections, "the user has 32 connections; close one, or wait until one falls silent", timeout)
}

// silent reports whether a connection is gone until it sends a heartbeat again.
func (b *book) silent(c *storev1.Connection) bool {
	return !b.now.Before(c.GetExpireTime().AsTime())
}

// forgetSilent keeps the connections that fell silent last.
func (b *book) forgetSilent() {
	var gone []*storev1.Connection
	for _, c := range b.s.GetConnections() {
		if b.silent(c) {
			gone = append(gone, c)
		}
	}
	slices.SortFunc(gone, func(a, c *storev1.Connection) int {
		return cmp.Or(c.GetExpireTime().AsTime().Compare(a.GetExpireTime().AsTime()), cmp.Compare(a.GetConnectionId(), c.GetConnectionId()))
	})
	for _, c := range gone[min(len(gone), maxSilent):] {
		b.disconnect(c)
	}
}

// connection is a connection of a session, which may have fallen silent.
func (b *book) connection(id, session string) (*storev1.Connection, error) {
	c := b.s.GetConnections()[id]
	if c == nil || c.GetSessionId() != session {
		return nil, problem.NotFound("there is no such connection; open another")
	}
	return c, nil
}

// heartbeat keeps a connection alive, or brings it back. Heartbeats that come thick are not written.
func (b *book) heartbeat(c *storev1.Connection) error {
	silent := b.silent(c)
	if silent {
		if err := b.room(c.GetTimeout().AsDuration()); err != nil {
			return err
		}
	}
	if silent || b.now.Sub(c.GetHeartbeatTime().AsTime()) >= c.GetTimeout().AsDuration()/3 {
		b.beat(c)
	}
	return nil
}

// change sets what a request says of a connection.
func (b *book) change(c *storev1.Connection, want *sessionv1.Connection, settings settings) {
	was := proto.CloneOf(c)
	c.Modality = cmp.Or(storev1.Modality(want.GetModality()), c.GetModality())
	if len(want.GetCapabilities()) > 0 {
		c.Capabilities = slices.Clone(want.GetCapabilities())
	}
	if want.GetDevice() != nil {
		c.Device = keptDevice(want.GetDevice(), settings)
	}
	b.changed = b.changed || !proto.Equal(was, c)
}

func (b *book) beat(c *storev1.Connection) {
	c.HeartbeatTime = timestamppb.New(b.now)
	c.ExpireTime = timestamppb.New(b.now.Add(c.GetTimeout().AsDuration()))
	b.changed = true
}

// disconnect forgets a connection.
func (b *book) disconnect(c *storev1.Connection) {
	delete(b.s.Connections, c.GetConnectionId())
	b.changed = true
}

// refused notes that credentials which name a session were wrong, count of them since the first.
func (b *book) refused(session string, count int32) {
	b.record(&storev1.SecurityEvent{
		Type: storev1.SecurityEventType_SECURITY_EVENT_TYPE_CREDENTIALS_REFUSED, SessionId: session, Count: count,
	})
}

// next is when time will bring something; zero: never.
func (b *book) next() time.Time {
	var soonest time.Time
	consider := func(t time.Time) {
		if soonest.IsZero() || t.Before(soonest) {
			soonest = t
		}
	}
	for _, r := range b.s.GetSessions() {
		if r.GetEnd() != nil {
			continue
		}
		end, _ := credential.End(r)
		consider(end)
		if !r.GetExpiryAnnounced() {
			consider(announceTime(r))
		}
	}
	for _, c := range b.connections() {
		consider(c.GetExpireTime().AsTime())
	}
	return soonest
}
