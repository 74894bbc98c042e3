package linear

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/db"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

const (
	// maxWebhook is the largest body: more than an issue may have here. Strangers may send that much, unsigned.
	maxWebhook = 1 << 20
	// webhookTime is for all of an answer: Linear waits five seconds, and then sends again.
	webhookTime = 4 * time.Second
	// futureSkew is how far ahead of ours Linear's clock may be.
	futureSkew = 60 * time.Second
)

// Webhook answers `POST /webhooks/linear/{endpoint_id}`. It is safe for concurrent use.
//
// A webhook counts if one of its endpoint's secrets signs the raw body. What it says is applied by the rules of
// applyReport, or of partReport, so order and repeats do not matter. One that is signed but old may be a retry that Linear did not stamp again,
// or a replay: it counts by the time of what it says, and the issue is fetched from Linear as well.
type Webhook struct{ c WebhookConfig }

// WebhookConfig is what a Webhook works with. All of it must be set.
type WebhookConfig struct {
	Kinds

	// FindEndpoints reads whose an endpoint is: db.DB.FindEndpoints.
	FindEndpoints func(ctx context.Context, id string) ([]db.Endpoint, error)
	// Open opens what Options.Seal sealed.
	Open func(sealed, context []byte) ([]byte, error)
	Now  func() time.Time
	Log  *slog.Logger
}

// NewWebhook makes a Webhook.
func NewWebhook(c WebhookConfig) *Webhook { return &Webhook{c} }

// refusal is an answer other than 200.
type refusal struct {
	status int
	said   string
}

func (r *refusal) Error() string { return r.said }

var (
	errNoEndpoint      = &refusal{http.StatusNotFound, "there is no such endpoint"}
	errWebhookTooLarge = &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("over %d bytes", maxWebhook)}
)

// ServeHTTP implements [http.Handler].
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "a webhook is a POST", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), webhookTime)
	defer cancel()
	// Not every ResponseWriter has deadlines; where none can be set there is none.
	_ = http.NewResponseController(w).SetReadDeadline(h.c.Now().Add(webhookTime))
	said, err := h.answer(ctx, r, http.MaxBytesReader(w, r.Body, maxWebhook))
	if err == nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, said+"\n")
		return
	}
	refused, ok := errors.AsType[*refusal](err)
	if full, isFull := errors.AsType[*problem.Error](err); isFull {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(full.RetryAfter.Seconds()))))
		refused = &refusal{http.StatusTooManyRequests, full.Message}
	} else if !ok {
		h.c.Log.ErrorContext(ctx, "a webhook failed", "error", err)
		refused = &refusal{http.StatusServiceUnavailable, "not now; send it again"}
	}
	http.Error(w, refused.said, refused.status)
}

// answer says what became of a webhook.
func (h *Webhook) answer(ctx context.Context, r *http.Request, body io.Reader) (string, error) {
	// What can be told by the headers is refused before anything is read, or asked of the database.
	id := strings.TrimPrefix(r.URL.Path, WebhookPath)
	if len(id) != endpointIDLen || strings.ContainsFunc(id, notIDRune) {
		return "", errNoEndpoint
	}
	signature, err := hex.DecodeString(strings.TrimSpace(r.Header.Get("Linear-Signature")))
	if err != nil || len(signature) != sha256.Size {
		return "", &refusal{http.StatusBadRequest, "the header Linear-Signature is missing, or no signature"}
	}
	if r.ContentLength > maxWebhook {
		return "", errWebhookTooLarge
	}
	var buf bytes.Buffer // io.ReadAll leaves five times as much behind
	_, err = buf.ReadFrom(body)
	raw := buf.Bytes()
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return "", errWebhookTooLarge
		}
		if full, ok := errors.AsType[*problem.Error](err); ok {
			return "", full
		}
		return "", &refusal{http.StatusBadRequest, "the body cannot be read"}
	}
	ctx, endpoint, err := h.find(ctx, id)
	if err != nil {
		return "", err
	}
	if err := h.verify(ctx, endpoint, raw, signature); err != nil {
		return "", err
	}
	envelope, err := readPayload(raw)
	if err != nil {
		return "", &refusal{http.StatusBadRequest, "the body is no JSON object"}
	}
	return h.take(ctx, endpoint, envelope.GetFields(), r.Header.Get("Linear-Delivery"), raw)
}

// find makes ctx act for the tenant that has the endpoint, and reads it.
func (h *Webhook) find(ctx context.Context, id string) (context.Context, object.Snapshot[endpointState], error) {
	none := object.Snapshot[endpointState]{}
	endpoints, err := h.c.FindEndpoints(ctx, id)
	if err != nil {
		return ctx, none, err
	}
	if len(endpoints) != 1 {
		return ctx, none, errNoEndpoint
	}
	ctx = identity.With(ctx, identity.Identity{Tenant: endpoints[0].Tenant, Service: true})
	s, err := h.c.Endpoints.View(ctx, object.ID(id))
	if errors.Is(err, object.ErrNotFound) {
		return ctx, none, errNoEndpoint
	}
	return ctx, s, err
}

// endpointIDLen is that of 128 bits in base32.
const endpointIDLen = 26

// verify wants the hex HMAC-SHA256 of the raw body under one of the endpoint's secrets.
func (h *Webhook) verify(ctx context.Context, endpoint object.Snapshot[endpointState], raw, signature []byte) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	good := false
	for _, secret := range endpoint.State.GetSecrets() {
		key, err := h.c.Open(secret.GetSealed(), sealContext(caller.Tenant, endpoint.ID))
		if err != nil {
			h.c.Log.ErrorContext(ctx, "an endpoint's secret cannot be opened: is its seal key gone?", "endpoint", string(endpoint.ID), "error", err)
			continue
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(raw)
		if hmac.Equal(mac.Sum(nil), signature) {
			good = true // and go on: how long it takes tells nothing
		}
	}
	if !good {
		return &refusal{http.StatusBadRequest, "the signature is not of this body and a secret of this endpoint"}
	}
	return nil
}

// take applies a webhook whose signature is good.
func (h *Webhook) take(
	ctx context.Context, endpoint object.Snapshot[endpointState], fields map[string]*structpb.Value, delivery string, raw []byte,
) (string, error) {
	sentMs := fields["webhookTimestamp"].GetNumberValue()
	if sentMs < 1 || sentMs > 1<<53 {
		return "", &refusal{http.StatusBadRequest, "webhookTimestamp is missing"}
	}
	sent, now := time.UnixMilli(int64(sentMs)), h.c.Now()
	if sent.After(now.Add(futureSkew)) {
		return "", &refusal{http.StatusBadRequest, "webhookTimestamp is in the future"}
	}
	if want := endpoint.State.GetOrganizationId(); want != "" && text(fields, "organizationId") != want {
		return "", &refusal{http.StatusBadRequest, "the webhook is of another workspace"}
	}
	e := &envelope{fields, endpoint, sent, delivery, now.Sub(sent) > replayWindow(endpoint.State)}
	if delivery == "" || len(delivery) > 128 {
		e.delivery = hex.EncodeToString(bodyID(raw))
	}
	switch kind := text(fields, "type"); kind {
	case "Issue":
		return h.takeIssue(ctx, e)
	case "Comment":
		return takePart(ctx, h, h.c.Comments, &storev1.CommentState{}, e)
	case "Attachment":
		return takePart(ctx, h, h.c.Attachments, &storev1.AttachmentState{}, e)
	case "AgentSessionEvent":
		return h.takeSession(ctx, e)
	case "IssueLabel", "Project", "Cycle", "User":
		return h.takeName(ctx, kind, e)
	}
	return "ignored: nothing is kept of that type", nil
}

// envelope is a webhook whose signature is good.
type envelope struct {
	fields   map[string]*structpb.Value
	endpoint object.Snapshot[endpointState]
	sent     time.Time
	delivery string
	// stale: it was sent longer ago than the endpoint takes.
	stale bool
}

// at is when what it tells of happened.
func (e *envelope) at() time.Time {
	if t := moment(e.fields, "createdAt"); t != nil {
		return t.AsTime()
	}
	return e.sent
}

// unreadable is the answer where asking for the webhook again would not make it better.
func (e *envelope) unreadable(ctx context.Context, h *Webhook, err error) string {
	kind, _ := cut(text(e.fields, "type"), maxIdentifier)
	h.c.Log.WarnContext(ctx, "a signed webhook cannot be read", "endpoint", string(e.endpoint.ID), "type", kind, "error", err)
	return "ignored: the " + strings.ToLower(kind) + " " + err.Error()
}

const (
	unknownAction = "ignored: the action is none that is known"
	ofAnotherTeam = "ignored: it is of a team that this endpoint does not keep"
)

func (h *Webhook) takeIssue(ctx context.Context, e *envelope) (string, error) {
	w, err := newIssueReport(e.fields["data"].GetStructValue(), "webhook", rankWebhook, e.sent)
	if err != nil {
		return e.unreadable(ctx, h, err), nil
	}
	w.endpoint, w.delivery, w.change = string(e.endpoint.ID), e.delivery, webhookChange(e.fields)
	action := text(e.fields, "action")
	switch action {
	case "create":
		w.create = true
	case "update":
		w.clear(inner(e.fields, "updatedFrom"))
	case "remove":
		w.removal(e.at())
	default:
		return unknownAction, nil
	}

	seen := rpc.HashID("d-", w.endpoint+"\x00"+e.delivery)
	if _, err := h.c.Deliveries.View(ctx, seen); err == nil {
		return "a duplicate", nil
	} else if !errors.Is(err, object.ErrNotFound) {
		return "", err
	}
	said, err := h.apply(ctx, w, e.endpoint.State.GetTeamIds(), e.stale)
	if err != nil || e.stale {
		// A stale one leaves no note: the header that names the delivery is not signed, and one that comes on time must not be passed over
		// because a replay came before it.
		return said, err
	}
	// The note comes last: where this process dies before it, the webhook is sent again, and applied again to no effect.
	_, err = h.c.Deliveries.Update(ctx, seen, func(tx *object.Tx[deliveryState]) error {
		s := tx.State()
		s.IssueId, s.Action, s.Outcome = w.id, action, said
		return nil
	}, object.Create())
	if err != nil && !errors.Is(err, object.ErrExists) {
		return "", err
	}
	return said, nil
}

// bodyID names a webhook without a delivery id by its body.
func bodyID(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return sum[:16]
}

// apply applies a report, unless the issue is new and of a team that the endpoint does not keep. What is stale counts by its own time,
// and Linear is to be asked as well, unless what it says is known.
func (h *Webhook) apply(ctx context.Context, w *issueReport, teams []string, stale bool) (said string, _ error) {
	opts := []object.UpdateOption{object.Shared()}
	if team := w.fields.GetTeam().GetId(); team == "" || len(teams) == 0 || slices.Contains(teams, team) {
		opts = append(opts, object.Upsert())
	}
	_, err := h.c.Issues.Update(ctx, object.ID(w.id), func(tx *object.Tx[issueState]) error {
		switch applied := applyIssue(tx, w); {
		case !applied:
			said = "not newer than what is known"
		case stale && !w.removed:
			said = "applied, though it is old: the issue will be fetched"
			tx.State().Refetch = true
		default:
			said = "applied"
		}
		return nil
	}, opts...)
	if errors.Is(err, object.ErrNotFound) {
		return ofAnotherTeam, nil
	}
	return said, err
}

// takeName applies a webhook about something that issues refer to by name: each that does has the new name. One that is cut short is sent
// again, and goes on.
func (h *Webhook) takeName(ctx context.Context, kind string, e *envelope) (string, error) {
	thing := inner(e.fields, "data")
	id, err := readID(thing)
	if err != nil {
		return e.unreadable(ctx, h, err), nil
	}
	name, at := nameOf(thing), moment(thing, "updatedAt")
	if text(e.fields, "action") != "update" || name == "" {
		return "ignored: it changes no name", nil
	}
	namedMs := min(e.sent.UnixMilli(), h.c.Now().UnixMilli())
	if at != nil {
		namedMs = min(namedMs, at.AsTime().UnixMilli())
	}
	o := object.ListOptions{Terms: []string{map[string]string{"IssueLabel": "label=", "Project": "linear_project=", "Cycle": "cycle=", "User": "assignee="}[kind] + id}}
	for {
		page, err := h.c.Issues.List(ctx, o)
		if err != nil {
			return "", err
		}
		for _, s := range page.Items {
			if !rename(proto.CloneOf(s.State), id, name, color(thing), namedMs) {
				continue
			}
			_, err := h.c.Issues.Update(ctx, s.ID, func(tx *object.Tx[issueState]) error {
				if !rename(tx.State(), id, name, color(thing), namedMs) {
					tx.Unchanged()
				}
				return nil
			})
			if err != nil && !errors.Is(err, object.ErrNotFound) {
				return "", err
			}
		}
		if o.PageToken = page.Next; o.PageToken == "" {
			return "applied", nil
		}
	}
}

// rename gives what an issue refers to by an id a name that Linear said at a time, and reports whether that is new.
func rename(s *storev1.IssueState, id, name, color string, namedMs int64) (renamed bool) {
	for _, l := range s.GetLabels() {
		if l.GetId() == id && l.GetNamedMs() <= namedMs && (l.GetName() != name || color != "" && l.GetColor() != color) {
			l.Name, l.NamedMs, l.Color, renamed = name, namedMs, cmp.Or(color, l.GetColor()), true
		}
	}
	for _, r := range refs(s) {
		if r.GetId() == id && r.GetNamedMs() <= namedMs && r.GetName() != name {
			r.Name, r.NamedMs, renamed = name, namedMs, true
		}
	}
	return renamed
}
