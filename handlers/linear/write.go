package linear

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/Khan/genqlient/graphql"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/gen/linear"
	"holdfast/identity"
	"holdfast/object"
)

// WriterConfig says how changes are sent to Linear. All but Settle must be set.
type WriterConfig struct {
	SyncConfig

	// Coordinator has the ledger, in which each change is a call.
	Coordinator *coordclient.Client
	// Base sends requests.
	Base http.RoundTripper
	// Settle is how long after it was sent a change may yet be made. 0: 1 min.
	Settle time.Duration
}

// Writer sends the changes of issues to Linear, each once. It is safe for concurrent use, also by several processes at once: the ledger lets
// one send a change.
//
// # Failures
//
// A creation has an id of ours, so Linear refuses it where it was made before, and that is success. Whether an update was made that was not
// answered is seen by the issue: it has the new values, or it is as it was when the update was sent. Where it is neither, somebody has changed it since, and the
// update is refused and not sent again. A process that dies while it sends leaves the call in the ledger: the next one waits until its lease is
// over, and then asks Linear.
type Writer struct {
	c WriterConfig
}

// NewWriter makes a Writer.
func NewWriter(c WriterConfig) *Writer {
	if c.Settle == 0 {
		c.Settle = time.Minute
	}
	return &Writer{c}
}

const (
	// confirmAfter is how long after Linear took a change it is asked for it, where neither a webhook nor the sync has brought it.
	confirmAfter = 30 * time.Second
	// firstResend is how long a change waits after its first failure, and maxResend how long after many. It is given up after giveUp.
	firstResend = 5 * time.Second
	maxResend   = 10 * time.Minute
	giveUp      = 24 * time.Hour
	// sendTime is for one request, and sendPatience for how long it waits for its turn in Linear's limits before others have theirs.
	sendTime     = 30 * time.Second
	sendPatience = 10 * time.Second
	// maxSteps bounds what is done for an issue at a time.
	maxSteps = 4 * maxChanges
)

// Endpoint sends what waits for an endpoint's key. It goes on after an error.
func (w *Writer) Endpoint(ctx context.Context, t identity.Tenant, endpoint string) error {
	ctx = identity.With(ctx, identity.Identity{Tenant: t, Service: true})
	var errs []error
	for token := ""; ; {
		page, err := w.c.Issues.List(ctx, object.ListOptions{PageSize: refetchBatch, PageToken: token, Terms: []string{outboxTerm(endpoint)}})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, s := range page.Items {
			errs = append(errs, w.Issue(ctx, t, string(s.ID)))
		}
		if token = page.Next; token == "" {
			return errors.Join(errs...)
		}
	}
}

// Issue sends the changes of an issue that are due, one after the other.
func (w *Writer) Issue(ctx context.Context, t identity.Tenant, id string) error {
	ctx = identity.With(ctx, identity.Identity{Tenant: t, Service: true})
	for range maxSteps {
		s, err := w.c.Issues.View(ctx, object.ID(id))
		if errors.Is(err, object.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		c := nextChange(s.State, w.c.Now())
		if c == nil {
			return nil
		}
		if err := w.step(ctx, t, id, c); err != nil {
			return err
		}
	}
	return nil
}

// nextChange is the change that has to be sent, or asked after, now; nil: there is none. A change is not sent before those that were asked
// for earlier.
func nextChange(s *storev1.IssueState, now time.Time) *storev1.LocalChange {
	for _, c := range s.GetLocalChanges() {
		switch due := !c.GetNotBefore().AsTime().After(now); {
		case !unsettled(c):
		case due:
			return c
		case c.GetStatus() != accepted:
			return nil
		}
	}
	return nil
}

// step brings a change further: afterwards it has another status, or waits.
func (w *Writer) step(ctx context.Context, t identity.Tenant, id string, due *storev1.LocalChange) error {
	c := due
	e, err := w.c.Endpoints.View(ctx, object.ID(c.GetEndpointId()))
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return err
	}
	if err != nil || e.State.GetApiKey() == nil {
		if c.GetStatus() == accepted {
			return w.later(ctx, id, c)
		}
		return w.settle(ctx, id, c, verdict{refused: "the endpoint has no API key any more"})
	}
	key, err := w.c.Open(e.State.GetApiKey().GetSealed(), sealContext(t, e.ID))
	if err != nil && c.GetStatus() == accepted {
		return w.later(ctx, id, c)
	}
	if err != nil {
		return w.settle(ctx, id, c, verdict{why: "the API key cannot be opened: put it in again"})
	}
	if c.GetStatus() == accepted {
		return w.check(ctx, id, c, newLinearAPI(&w.c.SyncConfig, string(key)))
	}
	// What was sent is noted before it is, so that it is known afterwards what the issue was like.
	c = nil
	err = w.change(ctx, id, due.GetChangeId(), func(s *storev1.IssueState, is *storev1.LocalChange) {
		if is.GetStatus() == pending {
			is.Status, is.KnownMs = sending, s.GetStamp().GetTimeMs()
			for _, earlier := range s.GetLocalChanges() {
				is.KnownMs = max(is.GetKnownMs(), earlier.GetAcceptedMs())
			}
		}
		is.AttemptCount++
		c = proto.CloneOf(is)
	})
	if err != nil || c == nil {
		return err
	}
	took, err := w.send(ctx, id, c, string(key))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return w.settle(ctx, id, c, judge(c.GetChangeId(), took, err))
}

// change changes a change of an issue, where it is still there.
func (w *Writer) change(ctx context.Context, id, changeID string, do func(s *storev1.IssueState, c *storev1.LocalChange)) error {
	_, err := w.c.Issues.Update(ctx, object.ID(id), func(tx *object.Tx[issueState]) error {
		s := tx.State()
		i := slices.IndexFunc(s.GetLocalChanges(), func(c *storev1.LocalChange) bool { return c.GetChangeId() == changeID && unsettled(c) })
		if i < 0 {
			tx.Unchanged() // a webhook was faster
			return nil
		}
		do(s, s.LocalChanges[i])
		return nil
	})
	if errors.Is(err, object.ErrNotFound) {
		return nil
	}
	return err
}

// writeAnswer is what Linear says of a change: of an issue, when it was updated with it, and of a step, when it was made.
type writeAnswer struct {
	success bool
	atMs    int64
}

// verdict is what has become of a change that was sent.
type verdict struct {
	// accepted: Linear made it; acceptedMs is its updatedAt of the issue then, or its createdAt of the step, or 0 where it is not known.
	accepted   bool
	acceptedMs int64
	// refused is why it was not made, and will not be; empty: it may be.
	refused string
	// Otherwise it is tried again: at a time, or where that is zero after a pause, and why is the reason.
	at  time.Time
	why string
}

// judge says what an answer means for a change.
func judge(changeID string, took writeAnswer, err error) verdict {
	errs := listed(err)
	limit, limited := errors.AsType[*rateLimitedError](err)
	switch {
	case err == nil && took.success:
		return verdict{accepted: true, acceptedMs: took.atMs}
	case err == nil:
		return verdict{refused: "linear did not make the change, and does not say why"}
	case errors.Is(err, errOverwritten):
		return verdict{refused: errOverwritten.Error()}
	case limited:
		return verdict{at: limit.until, why: "it waits for its turn in linear's limits"}
	case existsAlready(errs, changeID):
		return verdict{accepted: true}
	case hasCode(errs, "AUTHENTICATION_ERROR") || statusOf(err) == http.StatusUnauthorized:
		return verdict{why: "linear does not take the API key"}
	case isBadInput(err), hasCode(errs, "FORBIDDEN", "FEATURE_NOT_ACCESSIBLE", "USAGE_LIMIT_EXCEEDED", "ENTITY_NOT_FOUND", "GRAPHQL_PARSE_FAILED", "USER_ERROR"):
		return verdict{refused: saidOf(errs)}
	case len(errs) == 0 && statusOf(err) >= http.StatusBadRequest && statusOf(err) < http.StatusInternalServerError:
		return verdict{refused: plainError(err).Error()}
	}
	if _, unknown := errors.AsType[*coordclient.UnknownError](err); unknown {
		return verdict{why: "linear's answer is lost: it is asked whether the change was made"}
	}
	return verdict{why: plainError(err).Error()}
}

// existsAlready reports whether Linear refused to make something because it has something with the id.
func existsAlready(errs gqlerror.List, id string) bool {
	return slices.ContainsFunc(errs, func(e *gqlerror.Error) bool {
		said, _ := e.Extensions["userPresentableMessage"].(string)
		return hasCode(gqlerror.List{e}, "INPUT_ERROR") && strings.HasPrefix(e.Message, "conflict on insert of ") && strings.Contains(e.Message+" "+said, id)
	})
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*graphql.HTTPError](err); ok {
		return e.StatusCode
	}
	return 0
}

// saidOf is what Linear says for people.
func saidOf(errs gqlerror.List) string {
	for _, e := range errs {
		if said, ok := e.Extensions["userPresentableMessage"].(string); ok && said != "" {
			return strings.ReplaceAll(said, "\x00", "")
		}
	}
	return strings.ReplaceAll(errs[0].Message, "\x00", "")
}

// settle notes what has become of a change.
func (w *Writer) settle(ctx context.Context, id string, c *storev1.LocalChange, v verdict) error {
	now := w.c.Now()
	if v.accepted && v.acceptedMs > 0 && c.GetType() == toRespond {
		return w.responded(ctx, id, c, time.UnixMilli(v.acceptedMs))
	}
	return w.change(ctx, id, c.GetChangeId(), func(s *storev1.IssueState, c *storev1.LocalChange) {
		switch {
		case v.accepted:
			c.Status, c.AcceptedMs, c.AcceptTime, c.Error = accepted, v.acceptedMs, timestamppb.New(now), ""
			c.NotBefore = timestamppb.New(now.Add(confirmAfter))
			if c.GetType() == toRespond {
				c.NotBefore = nil // nothing reports it: Linear is asked for it at once
			}
			if v.acceptedMs == 0 && c.GetType() == toUpdate {
				c.AcceptedMs = now.UnixMilli() // Linear did not say; a later word shows it
			}
			confirm(s)
		case v.refused != "":
			refuse(s, c, v.refused, now)
		case now.Sub(c.GetRequestTime().AsTime()) > giveUp:
			refuse(s, c, "it was given up after a day: "+v.why, now)
		default:
			if v.at.IsZero() {
				v.at = now.Add(jittered(min(firstResend<<min(c.GetAttemptCount(), 10), maxResend)))
			}
			c.NotBefore = timestamppb.New(v.at)
			c.Error, _ = cut(v.why, maxError)
		}
	})
}

// errOverwritten: it is not known whether an update was made, and the issue is neither as it was before nor as the update wants it.
var errOverwritten = errors.New("it is not known whether linear made the change, and the issue was changed since; it is not sent again")

// send sends a change, unless the ledger knows that it was sent before; then the answer is what became of it.
func (w *Writer) send(ctx context.Context, id string, c *storev1.LocalChange, key string) (writeAnswer, error) {
	client := &http.Client{Transport: w.c.Coordinator.Transport("linear", coordclient.Options{
		Base: w.c.Base, Timeout: sendTime, MaxWait: sendPatience, Holder: "holdfast",
		Operation: func(*http.Request) string {
			return strings.ToLower(strings.TrimPrefix(c.GetType().String(), "LOCAL_CHANGE_TYPE_")) + "_issue"
		},
		Reconcile: func(ctx context.Context, call *coordinationv1.Call) error {
			return w.c.Coordinator.Reconcile(ctx, "linear", call, func(ctx context.Context, call *coordinationv1.Call, now time.Time) (coordclient.Finding, error) {
				return w.look(ctx, id, c, newLinearAPI(&w.c.SyncConfig, key), now.Before(call.GetBeginTime().AsTime().Add(w.c.Settle)))
			})
		},
		OnError: func(err error) { w.c.Log.WarnContext(ctx, "a change of Linear was not reported", "error", err) },
	})}
	api := graphql.NewClient(w.c.URL, &linearDoer{key, &SyncConfig{Client: client, RetryAfter: coordclient.RetryAfter, Now: w.c.Now}})
	ctx = coordclient.WithKey(ctx, c.GetChangeId())
	in := input(c)
	switch c.GetType() {
	case toCreate:
		res, err := linear.IssueCreate(ctx, api, &in)
		if err != nil || res.IssueCreate == nil {
			return writeAnswer{}, err
		}
		return writeAnswer{res.IssueCreate.Success, updatedMs(res.IssueCreate.Issue)}, nil
	case toUpdate:
		res, err := linear.IssueUpdate(ctx, api, id, &in)
		if err != nil || res.IssueUpdate == nil {
			return writeAnswer{}, err
		}
		return writeAnswer{res.IssueUpdate.Success, updatedMs(res.IssueUpdate.Issue)}, nil
	case toRespond:
		in["agentSessionId"], in["content"] = c.GetAgentSessionId(), contentOf(c.GetActivity())
		if c.GetActivity().GetEphemeral() {
			in["ephemeral"] = true
		}
		res, err := linear.AgentActivityCreate(ctx, api, &in)
		if err != nil || res.AgentActivityCreate == nil {
			return writeAnswer{}, err
		}
		return writeAnswer{res.AgentActivityCreate.Success, momentMs(res.AgentActivityCreate.AgentActivity, "createdAt")}, nil
	default:
		in["issueId"], in["body"] = id, c.GetBody()
		if p := c.GetParentCommentId(); p != "" {
			in["parentId"] = p
		}
		res, err := linear.CommentCreate(ctx, api, &in)
		if err != nil || res.CommentCreate == nil {
			return writeAnswer{}, err
		}
		return writeAnswer{success: res.CommentCreate.Success}, nil
	}
}

// contentOf is what a step says, as Linear wants it.
func contentOf(a *storev1.AgentActivity) map[string]any {
	content := map[string]any{"type": a.GetType()}
	for name, value := range map[string]string{"body": a.GetBody(), "action": a.GetAction(), "parameter": a.GetParameter(), "result": a.GetResult()} {
		if value != "" || name == "parameter" && a.GetType() == "action" {
			content[name] = value
		}
	}
	return content
}

// updatedMs is Linear's updatedAt of an issue that it answered; 0: there is none.
func updatedMs(issue *json.RawMessage) int64 { return momentMs(issue, "updatedAt") }

// momentMs is a time of a thing that Linear answered, in Unix milliseconds; 0: there is none.
func momentMs(thing *json.RawMessage, name string) int64 {
	if thing == nil {
		return 0
	}
	read, err := readPayload(*thing)
	if err != nil {
		return 0
	}
	if at := moment(read.GetFields(), name); at != nil {
		return at.AsTime().UnixMilli()
	}
	return 0
}

// input is what a change says of an issue, as Linear wants it. What is cleared is null.
func input(c *storev1.LocalChange) map[string]any {
	in, e := map[string]any{}, c.GetEdit().ProtoReflect()
	for _, name := range c.GetFields() {
		f := e.Descriptor().Fields().ByName(protoreflect.Name(name))
		to := f.JSONName()
		switch name {
		case "add_label_ids":
			if to = "addedLabelIds"; c.GetType() == toCreate {
				to = "labelIds"
			}
			in[to] = c.GetEdit().GetAddLabelIds()
		case "remove_label_ids":
			in["removedLabelIds"] = c.GetEdit().GetRemoveLabelIds()
		case "priority", "description":
			in[to] = e.Get(f).Interface() // 0 and "" are values
		default:
			if in[to] = nil; e.Has(f) {
				in[to] = e.Get(f).Interface()
			}
		}
	}
	if c.GetType() != toUpdate {
		in["id"] = c.GetChangeId()
	}
	return in
}

// look asks Linear whether a change was made that was not answered. young: it may yet be.
func (w *Writer) look(ctx context.Context, id string, c *storev1.LocalChange, api linearAPI, young bool) (coordclient.Finding, error) {
	made, answer := false, ""
	switch c.GetType() {
	case toRespond:
		found, _, err := api.byID(ctx, agentActivities, []string{c.GetChangeId()})
		if err != nil {
			return coordclient.Finding{}, err
		}
		if made = len(found) > 0; made {
			step, err := json.Marshal(found[0])
			if err != nil {
				return coordclient.Finding{}, err
			}
			answer = `{"data":{"agentActivityCreate":{"success":true,"agentActivity":` + string(step) + `}}}`
		}
	case toComment:
		found, _, err := api.byID(ctx, comments, []string{c.GetChangeId()})
		if err != nil {
			return coordclient.Finding{}, err
		}
		made, answer = len(found) > 0, `{"data":{"commentCreate":{"success":true}}}`
	default:
		found, _, err := api.byID(ctx, issues, []string{id})
		if err != nil {
			return coordclient.Finding{}, err
		}
		if len(found) == 0 {
			break
		}
		report, err := newIssueReport(found[0], "poll", rankRead, w.c.Now())
		if err != nil {
			return coordclient.Finding{}, err
		}
		at, err := json.Marshal(text(found[0].GetFields(), "updatedAt"))
		if err != nil {
			return coordclient.Finding{}, err
		}
		answer = `{"data":{"issueCreate":{"success":true,"issue":{"updatedAt":` + string(at) + `}}}}`
		if c.GetType() == toCreate {
			made = true
			break
		}
		answer = strings.Replace(answer, "issueCreate", "issueUpdate", 1)
		if made = holds(report.fields, c.GetEdit(), c.GetFields()); !made && report.stamp.GetTimeMs() > c.GetKnownMs() {
			return coordclient.Finding{}, errOverwritten
		}
	}
	switch {
	case made:
		return coordclient.Finding{Outcome: &coordinationv1.Outcome{
			HttpStatus: http.StatusOK, Body: []byte(answer), Headers: map[string]string{"Content-Type": "application/json"},
		}}, nil
	case young:
		return coordclient.Finding{Why: "linear does not show it yet"}, nil
	}
	return coordclient.Finding{DidNotHappen: true, Why: "linear does not show it"}, nil
}

// check asks Linear for what it accepted, where no webhook and no sync has told of it.
func (w *Writer) check(ctx context.Context, id string, c *storev1.LocalChange, api linearAPI) error {
	list, of := issues, id
	if is := map[storev1.LocalChangeType]string{toComment: comments, toRespond: agentActivities}[c.GetType()]; is != "" {
		list, of = is, c.GetChangeId()
	}
	found, _, err := api.byID(ctx, list, []string{of})
	switch {
	case err != nil || len(found) == 0:
	case list == agentActivities:
		if at := moment(found[0].GetFields(), "createdAt"); at != nil {
			return w.responded(ctx, id, c, at.AsTime())
		}
	default:
		err = w.store(ctx, list, found[0], c.GetEndpointId())
	}
	return errors.Join(err, w.later(ctx, id, c))
}

// responded stores a step that Linear took at a time with its session, and drops the change of the issue.
func (w *Writer) responded(ctx context.Context, id string, c *storev1.LocalChange, at time.Time) error {
	step := proto.CloneOf(c.GetActivity())
	step.ActivityId, step.LinearCreateTime, step.LinearUpdateTime = c.GetChangeId(), timestamppb.New(at), timestamppb.New(at)
	_, err := w.c.AgentSessions.Update(ctx, object.ID(c.GetAgentSessionId()), func(tx *object.Tx[sessionState]) error {
		if tx.Entry(inActivities, activityKey(step)) != nil {
			tx.Unchanged() // a webhook was faster
			return nil
		}
		tx.Put(inActivities, activityKey(step), step)
		return nil
	})
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return err
	}
	return w.change(ctx, id, c.GetChangeId(), func(s *storev1.IssueState, c *storev1.LocalChange) {
		s.LocalChanges = slices.DeleteFunc(s.GetLocalChanges(), func(other *storev1.LocalChange) bool { return other == c })
	})
}

// later has Linear asked for an accepted change again, unless it is confirmed meanwhile. After a day it is left to the sync.
func (w *Writer) later(ctx context.Context, id string, c *storev1.LocalChange) error {
	return w.change(ctx, id, c.GetChangeId(), func(s *storev1.IssueState, c *storev1.LocalChange) {
		c.AttemptCount++
		c.NotBefore = timestamppb.New(w.c.Now().Add(jittered(min(confirmAfter<<min(c.GetAttemptCount(), 10), maxBackOff))))
		if w.c.Now().Sub(c.GetAcceptTime().AsTime()) > giveUp {
			s.LocalChanges = slices.DeleteFunc(s.GetLocalChanges(), func(other *storev1.LocalChange) bool { return other == c })
		}
	})
}

// store keeps what Linear answered.
func (w *Writer) store(ctx context.Context, list string, payload *structpb.Struct, endpoint string) error {
	if list == comments {
		report, err := newPartReport(&storev1.CommentState{}, payload, rankRead, w.c.Now())
		if err != nil {
			return err
		}
		_, err = report.store(ctx, w.c.Comments)
		return errors.Join(err, confirmComment(ctx, w.c.Issues, report.fields.GetIssueId(), report.id))
	}
	report, err := newIssueReport(payload, "poll", rankRead, w.c.Now())
	if err != nil {
		return err
	}
	report.endpoint = endpoint
	return storeIssue(ctx, w.c.Issues, report)
}

// storeIssue applies a report.
func storeIssue(ctx context.Context, k *object.Kind[issueState], w *issueReport) error {
	_, err := k.Update(ctx, object.ID(w.id), func(tx *object.Tx[issueState]) error {
		applyIssue(tx, w)
		return nil
	}, object.Upsert(), object.Shared())
	return err
}
