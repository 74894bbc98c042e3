package session

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/problem"
)

// defaults are the settings of a tenant that has set none. NIST SP 800-63B-4 allows its AAL2 a day, and an hour without
// activity.
func defaults() *storev1.SessionSettings {
	return &storev1.SessionSettings{
		AccessTtl:         durationpb.New(15 * time.Minute),
		IdleTimeout:       durationpb.New(time.Hour),
		AbsoluteTimeout:   durationpb.New(24 * time.Hour),
		MaxSessions:       10,
		LimitPolicy:       storev1.SessionLimitPolicy_SESSION_LIMIT_POLICY_EVICT_OLDEST,
		RefreshGrace:      durationpb.New(30 * time.Second),
		ConnectionTimeout: durationpb.New(time.Minute),
		FloorLease:        durationpb.New(30 * time.Second),
	}
}

// effective is what a tenant set, with the defaults for what it did not.
func effective(set *storev1.SessionSettings) *storev1.SessionSettings {
	all := proto.CloneOf(set)
	into := all.ProtoReflect()
	defaults().ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !into.Has(fd) {
			into.Set(fd, v)
		}
		return true
	})
	return all
}

// checkSettings refuses settings that contradict each other. The range of each is the proto's.
func checkSettings(s *storev1.SessionSettings) error {
	absolute := s.GetAbsoluteTimeout().AsDuration()
	if s.GetIdleTimeout().AsDuration() > absolute {
		return problem.InvalidArgument("settings.idle_timeout", "must not be longer than absolute_timeout")
	}
	if s.GetAccessTtl().AsDuration() > absolute {
		return problem.InvalidArgument("settings.access_ttl", "must not be longer than absolute_timeout")
	}
	return nil
}
