package coordination

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/mask"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// GetApi implements CoordinationService.
func (m *Manager) GetApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.GetApiRequest,
) (*coordinationv1.GetApiResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil:
		s.Info, s.State = object.Info{ID: id}, &storev1.ApiState{}
	case err != nil:
		return nil, err
	}
	var user *storev1.UserBuckets
	if caller.User != "" && countsUsers(configOf(req.GetApi(), s.State)) {
		if s.Version > 0 {
			if user, err = entry[*storev1.UserBuckets](ctx, m, id, inUserBuckets, ownerKey(caller.User)); err != nil {
				return nil, err
			}
		}
		user = inForce(user, s.State, configOf(req.GetApi(), s.State), m.now())
	}
	if counted := m.tallies.peek(tallyKey{caller.Tenant, req.GetApi()}); counted != nil && s.State.GetToday() != nil {
		s.State = shallow(s.State) // others read it, too
		s.State.Today, s.State.Details = todayOf(s.State, counted), nil
	}
	res := &coordinationv1.GetApiResponse{Api: present(s.Info, s.State, user, caller, m.now())}
	if req.GetUsageDays() > 0 || req.GetPageToken() != "" {
		if err := m.usage(ctx, caller, req, s.State, res); err != nil {
			return nil, err
		}
	}
	writeHeaders(ctx, res.GetApi().GetLimits(), nil)
	return res, nil
}

// usage adds the counts of the last days to an answer, from the newest to the oldest, as far as it has room.
func (m *Manager) usage(
	ctx context.Context, caller identity.Identity, req *coordinationv1.GetApiRequest, s state, res *coordinationv1.GetApiResponse,
) error {
	before, err := rpc.Cursor(req)
	if err != nil {
		return err
	}
	const beyondDates = "~"
	before = cmp.Or(before, beyondDates)
	size := cmp.Or(int(req.GetPageSize()), object.DefaultPageSize)
	first := m.now().In(location(configOf(req.GetApi(), s).GetTimeZone())).AddDate(0, 0, 1-int(req.GetUsageDays())).Format(time.DateOnly)
	var room object.Room
	room.Fits(rpc.AnswerSize(res))
	add := func(d *storev1.UsageDay) (goOn bool) {
		if d.GetDate() < first {
			return false
		}
		day := usageFor(caller, d)
		if n := len(res.GetUsage()); n > 0 && (n >= size || !room.Fits(rpc.AnswerSize(day))) {
			res.NextPageToken = rpc.Token(req, before)
			return false
		}
		res.Usage, before = append(res.GetUsage(), day), day.GetDate()
		return true
	}
	if today := todayOf(s, nil); today != nil && today.GetDate() < before && !add(today) {
		return nil
	}
	for more := res.GetApi().GetVersion() > 0; more; {
		page, err := m.kind.Entries(ctx, object.ID(req.GetApi()), inUsageDays, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize})
		if err != nil {
			return err
		}
		more = page.More
		for _, e := range slices.Backward(page.Entries) {
			if d, _ := e.Value.(*storev1.UsageDay); !add(d) {
				return nil
			}
		}
	}
	return nil
}

// ListApis implements CoordinationService.
func (m *Manager) ListApis(ctx context.Context, req *coordinationv1.ListApisRequest) (*coordinationv1.ListApisResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	apis, next, err := rpc.List(ctx, m.kind, req, object.ListOptions{Around: standingBytes}, func(s object.Snapshot[state]) *coordinationv1.Api {
		return present(s.Info, s.State, nil, caller, m.now())
	})
	return &coordinationv1.ListApisResponse{Apis: apis, NextPageToken: next}, err
}

// standingBytes is what an answer has of an API beside its state: how its 32 policies at most stand.
const standingBytes = 32 * 320

// UpdateApi implements CoordinationService.
func (m *Manager) UpdateApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.UpdateApiRequest,
) (*coordinationv1.UpdateApiResponse, error) {
	if err := rpc.RequireService(ctx, "update an API"); err != nil {
		return nil, err
	}
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.UpdateApiResponse, error) {
		words, was := t.clear(req.GetClear()), configOf(t.api, t.state)
		base, anew := was, slices.Contains(req.GetClear(), coordinationv1.Clear_CLEAR_CONFIG)
		if anew {
			base = configOf(t.api, &storev1.ApiState{})
		}
		config := as[*coordinationv1.ApiConfig](base)
		if err := mask.Merge(config, req.GetConfig(), req.GetUpdateMask(), configFields...); err != nil {
			return nil, err
		}
		if err := checkConfig(config); err != nil {
			return nil, err
		}
		switch is := as[*storev1.ApiConfig](config); {
		case anew && proto.Equal(is, base):
			t.configure(nil)
		case !proto.Equal(is, was):
			t.configure(is)
			words = append(words, "configured")
		}
		t.config = configOf(t.api, t.state)
		if len(words) > 0 {
			t.Emit(strings.Join(words, " "))
		}
		res := &coordinationv1.UpdateApiResponse{Api: present(t.Info(), t.state, nil, t.caller, t.ledger.now)}
		if req.GetDryRun() {
			return res, errAnswered
		}
		return res, nil
	})
}
