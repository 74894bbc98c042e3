package conversation

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

const (
	// DefaultCompactionLease is how long a range is leased where the caller does not say.
	DefaultCompactionLease = 2 * time.Minute
	// DefaultKeepTokens is how much of the newest messages is left as it is where the caller does not say.
	DefaultKeepTokens = 4000
	// maxCompaction is how many messages one summary takes in.
	maxCompaction = 1000
)

var (
	// errStaleLease: the lease is not the newest.
	errStaleLease = errors.New("another lease was given since")
	// errMoved: another summary was committed, or messages were removed, while the range was read.
	errMoved = errors.New("the conversation was compacted or edited meanwhile")
	// errSummarised: the lease has another summary already.
	errSummarised = errors.New("another text was committed under this lease; propose again to replace it")
)

// leasedError: another may summarise until then.
type leasedError struct{ until time.Time }

func (e leasedError) Error() string { return "another has the lease" }

// leaseCompaction lets the caller summarise a range that was chosen on the newest summary. mine is the token of a lease
// that the caller has; 0: none. It is a leasedError, or errMoved.
func leaseCompaction(
	s *storev1.ConversationState, wanted *storev1.CompactionLease, mine int64, lease time.Duration, now time.Time,
) (*storev1.CompactionLease, error) {
	held := s.GetCompaction()
	if held != nil && held.GetToken() != mine && held.GetSummarySeq() == 0 && now.Before(held.GetExpireTime().AsTime()) {
		return nil, leasedError{until: held.GetExpireTime().AsTime()}
	}
	if s.GetSummary().GetSeq() != wanted.GetBaseSummarySeq() || s.GetRemovedCount() != wanted.GetRemovedCount() {
		return nil, errMoved
	}
	given := proto.CloneOf(wanted)
	given.Token = max(held.GetToken(), s.GetIssuedBefore()) + 1
	given.ExpireTime = timestamppb.New(now.Add(lease))
	s.Compaction = given
	return given, nil
}

// commitSummary puts a summary in place of the leased range, or is errStaleLease or errSummarised. It returns nil where the
// same was committed under this lease already. A lease that is over counts until another is given: the range is closed, so the summary is
// right however late it comes.
func commitSummary(
	s *storev1.ConversationState, req *conversationv1.CommitCompactionRequest, now time.Time,
) (*storev1.Summary, error) {
	lease := s.GetCompaction()
	if lease.GetToken() != int64(req.GetFencingToken()) || lease.GetToSeq() == 0 { // a restored conversation has the token alone
		return nil, errStaleLease
	}
	if lease.GetSummarySeq() != 0 {
		if s.GetSummary().GetText() != req.GetText() {
			return nil, errSummarised
		}
		return nil, nil
	}
	s.SummaryCount++
	summary := &storev1.Summary{
		Seq: s.GetSummaryCount(), FromSeq: lease.GetFromSeq(), ToSeq: lease.GetToSeq(), Text: req.GetText(),
		TokenCount: int64(req.GetTokenCount()), CreateTime: timestamppb.New(now), ReplacedTokenCount: lease.GetTokenCount(),
	}
	if req.TokenCount == nil {
		summary.TokenCount, summary.TokenCountEstimated = gemini.Tokens(req.GetText()), true
	}
	lease.SummarySeq = summary.GetSeq()
	s.Summary = summary
	return summary, nil
}
