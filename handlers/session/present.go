package session

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/rpc"
	"holdfast/handlers/session/credential"
	"holdfast/object"
)

// present is a session as callers see it, without what is secret. It shares nothing with the state.
func (b *book) present(id, current string) *sessionv1.Session {
	r := b.s.GetSessions()[id]
	s := &sessionv1.Session{
		SessionId: id, User: b.s.GetUser(), Current: id == current, CreateTime: r.GetCreateTime(), ActiveTime: r.GetActiveTime(),
		IdleExpireTime: timestamppb.New(credential.IdleEnd(r)), ExpireTime: r.GetExpireTime(), Generation: r.GetGeneration(),
		Device: r.GetDevice(), ActiveConversationId: r.GetActiveConversationId(), ActiveProjectId: r.GetActiveProjectId(),
		Floor: b.floor(r), End: r.GetEnd(),
	}
	for _, c := range b.connections() {
		if c.GetSessionId() == id {
			s.Connections = append(s.Connections, c)
		}
	}
	return proto.CloneOf(s)
}

// floor is the floor that a session holds, unless its lease is over.
func (b *book) floor(r *storev1.SessionRecord) *storev1.FloorHold {
	if f := r.GetFloor(); f != nil && b.now.Before(f.GetExpireTime().AsTime()) {
		return f
	}
	return nil
}

// connections are those that are there, the oldest first.
func (b *book) connections() []*storev1.Connection {
	all := make([]*storev1.Connection, 0, len(b.s.GetConnections()))
	for _, c := range b.s.GetConnections() {
		if !b.silent(c) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, c *storev1.Connection) int {
		return cmp.Or(a.GetOpenTime().AsTime().Compare(c.GetOpenTime().AsTime()), cmp.Compare(a.GetConnectionId(), c.GetConnectionId()))
	})
	return all
}

// presence tells where a user is.
func (b *book) presence(i object.Info) *sessionv1.GetPresenceResponse {
	res := &sessionv1.GetPresenceResponse{
		Connections: b.connections(), ActiveConversationId: b.s.GetActiveConversationId(), ActiveProjectId: b.s.GetActiveProjectId(),
		Metadata: rpc.Metadata(i),
	}
	res.Online = len(res.GetConnections()) > 0
	for _, r := range b.s.GetSessions() {
		if res.GetActiveTime() == nil || r.GetActiveTime().AsTime().After(res.GetActiveTime().AsTime()) {
			res.ActiveTime = r.GetActiveTime()
		}
	}
	return res
}

func newestFirst(a, b *sessionv1.Session) int {
	return cmp.Or(b.GetCreateTime().AsTime().Compare(a.GetCreateTime().AsTime()), cmp.Compare(a.GetSessionId(), b.GetSessionId()))
}
