// Package adk keeps the sessions of Google's Agent Development Kit in Holdfast: a session.Service on StateService.
//
// A session is an object with its state and its events. The states of an app (keys app:…) and of a user in an app (user:…) are objects of
// their own, and an event changes all three in one commit.
package adk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/adk/platform"
	"google.golang.org/adk/session"

	holdfast "holdfast.internal/clients/go"
	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	statev1 "holdfast.internal/clients/go/gen/holdfast/state/v1"
)

// ErrStale is returned by AppendEvent where the session was changed after it was read: Get it again, and decide again.
var ErrStale = errors.New("adk: the session was changed since it was read")

const appLabel = "adk.app"

type service struct{ hf *holdfast.Client }

// NewSessionService returns a service that keeps sessions in Holdfast. hf has a service's key and acts for nobody: ADK names the user in
// each call, who owns the session. It is safe for concurrent use.
func NewSessionService(hf *holdfast.Client) session.Service { return service{hf} }

// prefixes are those of the keys of each scope.
var prefixes = [...]string{"", session.KeyPrefixApp, session.KeyPrefixUser}

// scopes returns the objects that make up a session's state: the session, its app and its user.
func scopes(app, user, id string) ([]*statev1.Ref, error) {
	if app == "" || user == "" || id == "" {
		return nil, fmt.Errorf("adk: app %q, user %q, session %q: all are required", app, user, id)
	}
	return []*statev1.Ref{
		{Type: "adk.session", Name: url.QueryEscape(app) + "/" + id, Owner: &user},
		{Type: "adk.app", Name: app, Owner: new("")},
		{Type: "adk.user", Name: app, Owner: &user},
	}, nil
}

var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// changes returns a change of each scope that delta has keys of; that of the session is there always.
func changes(app, user, id string, delta map[string]any) ([]*statev1.ApplyRequest, error) {
	refs, err := scopes(app, user, id)
	if err != nil {
		return nil, err
	}
	fields := [len(prefixes)]map[string]string{{}, {}, {}}
	for key, value := range delta {
		if strings.HasPrefix(key, session.KeyPrefixTemp) {
			continue
		}
		scope := 0
		for i, prefix := range prefixes {
			if strings.HasPrefix(key, prefix) {
				scope = i
			}
		}
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("adk: state %q: %w", key, err)
		}
		fields[scope]["/"+pointer.Replace(strings.TrimPrefix(key, prefixes[scope]))] = string(data)
	}
	var all []*statev1.ApplyRequest
	for i, ref := range refs {
		if i == 0 || len(fields[i]) > 0 {
			set := &statev1.Operation{Operation: &statev1.Operation_SetFields{SetFields: &statev1.SetFields{FieldsJson: fields[i]}}}
			all = append(all, &statev1.ApplyRequest{Ref: ref, Operations: []*statev1.Operation{set}})
		}
	}
	return all, nil
}

// Create makes a session. One that exists is an error.
func (s service) Create(ctx context.Context, req *session.CreateRequest) (*session.CreateResponse, error) {
	id := cmp.Or(req.SessionID, platform.NewUUID(ctx))
	all, err := changes(req.AppName, req.UserID, id, req.State)
	if err != nil {
		return nil, err
	}
	all[0].IfVersion, all[0].Labels = new(int64(0)), map[string]string{appLabel: req.AppName}
	_, err = s.hf.State.ApplyTogether(ctx, &statev1.ApplyTogetherRequest{Changes: all})
	if holdfast.Is(err, errorv1.Reason_REASON_VERSION_MISMATCH) {
		return nil, fmt.Errorf("adk: session %q already exists: %w", id, err)
	}
	if err != nil {
		return nil, err
	}
	got, err := s.Get(ctx, &session.GetRequest{AppName: req.AppName, UserID: req.UserID, SessionID: id})
	return (*session.CreateResponse)(got), err
}

// Get returns a session with its events, as they all were at one version.
func (s service) Get(ctx context.Context, req *session.GetRequest) (*session.GetResponse, error) {
	refs, err := scopes(req.AppName, req.UserID, req.SessionID)
	if err != nil {
		return nil, err
	}
	got := &adkSession{app: req.AppName, user: req.UserID, id: req.SessionID, state: map[string]any{}}
	query := &statev1.Query{Collection: "events", Reverse: true, Limit: 200}
	for first := true; ; first = false {
		if n := req.NumRecentEvents; n > 0 {
			query.Limit = int32(min(n-len(got.events), 200)) //nolint:gosec // at most 200
		}
		read := &statev1.ReadRequest{Reads: []*statev1.ReadOne{{Ref: refs[0], Queries: []*statev1.Query{query}, WithoutState: !first}}}
		if first {
			read.Reads = append(read.Reads, &statev1.ReadOne{Ref: refs[1]}, &statev1.ReadOne{Ref: refs[2]})
		}
		res, err := s.hf.State.Read(ctx, read)
		if err != nil {
			return nil, err
		}
		o := res.GetObjects()[0]
		if o.GetAbsent() {
			return nil, fmt.Errorf("adk: session %q not found", req.SessionID)
		}
		if first {
			got.version, got.updated = o.GetVersion(), o.GetUpdateTime().AsTime()
			if err := merge(got.state, res.GetObjects()); err != nil {
				return nil, err
			}
		}
		page := o.GetPages()[0]
		for _, entry := range page.GetEntries() {
			e := &session.Event{}
			if err := json.Unmarshal([]byte(entry.GetText()), e); err != nil {
				return nil, err
			}
			if !e.Timestamp.Before(req.After) {
				got.events = append(got.events, e)
			}
			query.Before = entry.GetKey()
		}
		if !page.GetMore() || len(got.events) == req.NumRecentEvents {
			slices.Reverse(got.events)
			return &session.GetResponse{Session: got}, nil
		}
	}
}

// merge adds the states of a session, its app and its user.
func merge(state map[string]any, scopes []*statev1.Object) error {
	for i, o := range scopes {
		var fields map[string]any
		if err := holdfast.DecodeState(o, &fields); err != nil {
			return err
		}
		for key, value := range fields {
			state[prefixes[i]+key] = value
		}
	}
	return nil
}

// List returns an app's sessions without their events, of one user or of all.
func (s service) List(ctx context.Context, req *session.ListRequest) (*session.ListResponse, error) {
	if req.AppName == "" {
		return nil, errors.New("adk: AppName is required")
	}
	list := &statev1.ListStatesRequest{
		Filter:   &statev1.StateFilter{Type: "adk.session", Labels: map[string]string{appLabel: req.AppName}},
		PageSize: 200, WithState: true,
	}
	if req.UserID != "" {
		list.Filter.Owner = &req.UserID
	}
	answer := &session.ListResponse{Sessions: []session.Session{}}
	shared := map[string][]*statev1.Object{} // the app's and the user's, by user
	for {
		page, err := s.hf.State.ListStates(ctx, list)
		if err != nil {
			return nil, err
		}
		for _, o := range page.GetObjects() {
			_, id, _ := strings.Cut(o.GetRef().GetName(), "/")
			one := &adkSession{app: req.AppName, user: o.GetOwner(), id: id, version: o.GetVersion(), updated: o.GetUpdateTime().AsTime(), state: map[string]any{}}
			if shared[one.user] == nil {
				refs, err := scopes(one.app, one.user, one.id)
				if err != nil {
					return nil, err
				}
				res, err := s.hf.State.Read(ctx, &statev1.ReadRequest{Reads: []*statev1.ReadOne{{Ref: refs[1]}, {Ref: refs[2]}}})
				if err != nil {
					return nil, err
				}
				shared[one.user] = res.GetObjects()
			}
			if err := merge(one.state, append([]*statev1.Object{o}, shared[one.user]...)); err != nil {
				return nil, err
			}
			answer.Sessions = append(answer.Sessions, one)
		}
		if list.PageToken = page.GetNextPageToken(); list.PageToken == "" {
			return answer, nil
		}
	}
}

// Delete removes a session with its events. One that is not there is no error.
func (s service) Delete(ctx context.Context, req *session.DeleteRequest) error {
	refs, err := scopes(req.AppName, req.UserID, req.SessionID)
	if err != nil {
		return err
	}
	_, err = s.hf.State.DeleteState(ctx, &statev1.DeleteStateRequest{Ref: refs[0]})
	return err
}

// AppendEvent adds an event and makes its changes of all states, in one commit. Where others have changed the session since it was read, it
// is ErrStale, and nothing has happened.
func (s service) AppendEvent(ctx context.Context, to session.Session, event *session.Event) error {
	current, ok := to.(*adkSession)
	switch {
	case !ok:
		return fmt.Errorf("adk: a %T is not a session of this service", to)
	case event == nil:
		return errors.New("adk: event is nil")
	case event.Partial:
		return nil
	}
	current.appending.Lock()
	defer current.appending.Unlock()
	all, err := changes(current.app, current.user, current.id, event.Actions.StateDelta)
	if err != nil {
		return err
	}
	kept := *event
	kept.Actions.StateDelta = maps.Clone(event.Actions.StateDelta)
	maps.DeleteFunc(kept.Actions.StateDelta, func(key string, _ any) bool { return strings.HasPrefix(key, session.KeyPrefixTemp) })
	data, err := json.Marshal(&kept)
	if err != nil {
		return err
	}
	all[0].IfVersion, all[0].MustExist = &current.version, true
	all[0].Operations = append(all[0].Operations, &statev1.Operation{Operation: &statev1.Operation_Append{
		Append: &statev1.Entry{Collection: "events", Value: &statev1.Entry_Text{Text: string(data)}},
	}})
	res, err := s.hf.State.ApplyTogether(ctx, &statev1.ApplyTogetherRequest{Changes: all})
	if holdfast.Is(err, errorv1.Reason_REASON_VERSION_MISMATCH) {
		return fmt.Errorf("%w: %w", ErrStale, err)
	}
	if err == nil {
		current.appended(res.GetChanges()[0].GetVersion(), &kept, event.Actions.StateDelta)
	}
	return err
}
