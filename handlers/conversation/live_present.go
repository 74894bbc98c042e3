package conversation

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
)

func presentCall(c *storev1.ToolCall) *conversationv1.ToolCall {
	call := &conversationv1.ToolCall{
		Seq: small(c.GetSeq()), CallId: c.GetCallId(), Name: c.GetName(), Args: c.GetArgs(), ArgsJson: c.GetArgsJson(), ArgsOmitted: c.GetArgsOmitted(),
		Status: conversationv1.ToolCallStatus(c.GetStatus()), Response: c.GetResponse(), ResponseJson: c.GetResponseJson(), IsError: c.GetIsError(),
		FromConnection: small(c.GetEpoch()), DeliveredConnection: small(c.GetDeliveredEpoch()), AfterSeq: small(c.GetAfterSeq()),
		ResultSeq: small(c.GetResultSeq()), CreateTime: c.GetCreateTime(), UpdateTime: c.GetUpdateTime(), ThoughtSignature: c.GetThoughtSignature(),
		ResponseOmitted: c.GetResponseOmitted(),
	}
	if claim := c.GetClaim(); claim != nil {
		call.Claim = &typev1.Lease{FencingToken: small(claim.GetFencingToken()), Holder: claim.GetWorker(), ExpireTime: claim.GetLeaseExpireTime()}
	}
	return call
}

// presentOwn is a call as the newest connection is shown it: with a claim only if that is its own.
func presentOwn(live *storev1.LiveState, c *storev1.ToolCall, now time.Time) *conversationv1.ToolCall {
	call := presentCall(c)
	if id := live.GetLease().GetConnectionId(); id == "" || c.GetClaim().GetConnectionId() != id {
		call.Claim = nil
	}
	addExpiresIn(call.GetClaim(), now)
	return call
}

// addExpiresIn tells the holder of a lease how long it lasts yet.
func addExpiresIn(l *typev1.Lease, now time.Time) {
	if l != nil {
		l.ExpiresIn = durationpb.New(max(l.GetExpireTime().AsTime().Sub(now), 0))
	}
}

// presentLease is the lease of the newest connection.
func presentLease(live *storev1.LiveState) *typev1.Lease {
	return &typev1.Lease{
		FencingToken: small(live.GetEpoch()), Holder: live.GetDevice().GetName(), ExpireTime: live.GetLease().GetExpireTime(),
	}
}

// ownLease is the lease as its holder is shown it.
func ownLease(live *storev1.LiveState, now time.Time) *typev1.Lease {
	l := presentLease(live)
	addExpiresIn(l, now)
	return l
}

// presentLive is where the newest connection stands; nil: there was none.
func presentLive(live *storev1.LiveState) *conversationv1.LiveConnection {
	if live.GetEpoch() == 0 {
		return nil
	}
	return &conversationv1.LiveConnection{
		Lease: presentLease(live), ConnectionId: live.GetLease().GetConnectionId(), User: live.GetLease().GetUser(),
		Device: presentDevice(live.GetDevice()), Provider: conversationv1.LiveProvider(live.GetProvider()), ProviderSessionId: live.GetSessionId(),
		OpenTime: live.GetOpenTime(), CloseTime: live.GetCloseTime(), CloseCode: live.GetCloseCode(), GoAwayTime: live.GetGoAwayTime(),
		StoredThrough: small(live.GetLastClientIndex()), TotalTokens: live.GetTotalTokens(), UnknownFrames: small(live.GetUnknownFrames()),
		Setup: presentSetup(live.GetSetup()),
	}
}

func presentSetup(s *storev1.LiveSetup) *conversationv1.LiveSetup {
	if s == nil {
		return nil
	}
	return &conversationv1.LiveSetup{
		Model: s.GetModel(), ResponseModalities: s.GetResponseModalities(), TargetLanguage: s.GetTargetLanguage(),
		ContextSha256: s.GetContextSha256(), ContextUpdates: small(s.GetContextUpdates()), ContextTime: s.GetContextTime(),
	}
}

func presentDevice(d *storev1.Device) *typev1.Device {
	if d == nil {
		return nil
	}
	return &typev1.Device{Name: d.GetName(), Platform: d.GetPlatform()}
}

func storedDevice(d *typev1.Device) *storev1.Device {
	if d == nil {
		return nil
	}
	return &storev1.Device{Name: d.GetName(), Platform: d.GetPlatform()}
}
