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
func defaults() settings {
	return &storev1.SessionSettings{
		AccessTtl:         durationpb.New(15 * time.Minute),
		IdleTimeout:       durationpb.New(time.Hour),
		AbsoluteTimeout:   durationpb.New(24 * time.Hour),
		MaxSessions:       10,
		LimitPolicy:       storev1.SessionLimitPolicy_SESSION_LIMIT_POLICY_EVICT_OLDEST,
		RefreshGrace:      durationpb.New(30 * time.Second),
		ConnectionTimeout: durationpb.New(time.Minute),
	}
}

// settingNames are the settings that a tenant may set.
var settingNames = []string{
	"access_ttl", "idle_timeout", "absolute_timeout", "max_sessions", "limit_policy", "refresh_grace", "connection_timeout",
	"discard_devices",
}

// effective is what a tenant set, with the defaults for what it did not.
func effective(set settings) settings {
	all := &storev1.SessionSettings{}
	proto.Merge(all, set)
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
func checkSettings(s settings) error {
	absolute := s.GetAbsoluteTimeout().AsDuration()
	if s.GetIdleTimeout().AsDuration() > absolute {
		return problem.InvalidArgument("settings.idle_timeout", "must not be longer than absolute_timeout")
	}
	if s.GetAccessTtl().AsDuration() > absolute {
		return problem.InvalidArgument("settings.access_ttl", "must not be longer than absolute_timeout")
	}
	return nil
}
