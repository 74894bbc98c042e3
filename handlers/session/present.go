package session

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/rpc"
	"holdfast/handlers/session/credential"
	"holdfast/object"
)

// present returns a session as callers see it, without what is secret. It shares nothing with the state. i is of the user's
// sessions.
func (b *book) present(id, current string, i object.Info) *sessionv1.Session {
	r := b.s.GetSessions()[id]
	s := &sessionv1.Session{
		SessionId: id, Owner: b.s.GetUser(), Version: int64(i.Version), CreateTime: r.GetCreateTime(), UpdateTime: rpc.Timestamp(i.UpdateTime),
		ExpireTime: r.GetExpireTime(), Labels: r.GetLabels(), Current: id == current, ActiveTime: r.GetActiveTime(),
		IdleExpireTime: timestamppb.New(credential.IdleEnd(r)), Device: device(r.GetDevice()),
		ActiveConversationId: r.GetActiveConversationId(), ActiveProjectId: r.GetActiveProjectId(),
		EndReason: sessionv1.EndReason(r.GetEnd().GetReason()), EndTime: r.GetEnd().GetEndTime(),
		EndsSoon: r.GetEnd() == nil && !b.now.Before(announceTime(r)),
	}
	for _, c := range b.connections() {
		if c.GetSessionId() == id {
			s.Connections = append(s.Connections, connection(c))
		}
	}
	return proto.CloneOf(s)
}

// newestFirst returns the place of a session in a list. It ends with the id.
func newestFirst(r *storev1.SessionRecord, id string) string {
	return fmt.Sprintf("%0*d%s", placeLen, math.MaxInt64-r.GetCreateTime().AsTime().UnixNano(), id)
}

const placeLen = 19

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

// presence returns whether the user is there, and on what.
func (b *book) presence() *sessionv1.Presence {
	p := &sessionv1.Presence{ActiveConversationId: b.s.GetActiveConversationId(), ActiveProjectId: b.s.GetActiveProjectId()}
	for _, c := range b.connections() {
		p.Connections = append(p.Connections, connection(c))
	}
	p.Online = len(p.GetConnections()) > 0
	for _, r := range b.s.GetSessions() {
		if p.GetActiveTime() == nil || r.GetActiveTime().AsTime().After(p.GetActiveTime().AsTime()) {
			p.ActiveTime = r.GetActiveTime()
		}
	}
	return p
}

func connection(c *storev1.Connection) *sessionv1.Connection {
	return &sessionv1.Connection{
		ConnectionId: c.GetConnectionId(), SessionId: c.GetSessionId(), Device: device(c.GetDevice()), Modality: typev1.Modality(c.GetModality()),
		Capabilities: slices.Clone(c.GetCapabilities()), OpenTime: c.GetOpenTime(), ExpireTime: c.GetExpireTime(),
	}
}

func device(d *storev1.Device) *typev1.Device {
	if d == nil {
		return nil
	}
	return &typev1.Device{Name: d.GetName(), Platform: d.GetPlatform(), UserAgent: d.GetUserAgent(), Address: d.GetAddress()}
}

// keptDevice is what may be stored of a device.
func keptDevice(d *typev1.Device, settings settings) *storev1.Device {
	if d == nil || settings.GetDiscardDevices() {
		return nil
	}
	return &storev1.Device{Name: d.GetName(), Platform: d.GetPlatform(), UserAgent: d.GetUserAgent(), Address: d.GetAddress()}
}

func securityEvent(e *storev1.SecurityEvent) *sessionv1.SecurityEvent {
	return &sessionv1.SecurityEvent{
		Seq: e.GetSeq(), Type: sessionv1.SecurityEventType(e.GetType()), EventTime: e.GetEventTime(), SessionId: e.GetSessionId(),
		Actor: e.GetActor(), EndReason: sessionv1.EndReason(e.GetEndReason()), Generation: e.GetGeneration(), Count: e.GetCount(),
		Device: device(e.GetDevice()),
	}
}

func presentSettings(s settings) *sessionv1.SessionSettings {
	return &sessionv1.SessionSettings{
		AccessTtl: s.GetAccessTtl(), IdleTimeout: s.GetIdleTimeout(), AbsoluteTimeout: s.GetAbsoluteTimeout(), MaxSessions: s.GetMaxSessions(),
		LimitPolicy: sessionv1.SessionLimitPolicy(s.GetLimitPolicy()), RefreshGrace: s.GetRefreshGrace(),
		ConnectionTimeout: s.GetConnectionTimeout(), DiscardDevices: s.GetDiscardDevices(),
	}
}

func storedSettings(s *sessionv1.SessionSettings) settings {
	return &storev1.SessionSettings{
		AccessTtl: s.GetAccessTtl(), IdleTimeout: s.GetIdleTimeout(), AbsoluteTimeout: s.GetAbsoluteTimeout(), MaxSessions: s.GetMaxSessions(),
		LimitPolicy: storev1.SessionLimitPolicy(s.GetLimitPolicy()), RefreshGrace: s.GetRefreshGrace(),
		ConnectionTimeout: s.GetConnectionTimeout(), DiscardDevices: s.GetDiscardDevices(),
	}
}

// expiresIn returns how long it is from now until a time.
func (b *book) expiresIn(t *timestamppb.Timestamp) *durationpb.Duration {
	return durationpb.New(t.AsTime().Sub(b.now))
}
