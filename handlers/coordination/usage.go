package coordination

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// GetUsage implements CoordinationService. It reads from the newest day to the oldest, as far as the answer has room.
func (m *Manager) GetUsage(ctx context.Context, req *coordinationv1.GetUsageRequest) (*coordinationv1.GetUsageResponse, error) {
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil {
		return &coordinationv1.GetUsageResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	days := int(req.GetDays())
	if days == 0 {
		days = 30
	}
	first := m.now().In(location(configOf(req.GetApi(), s.State).GetTimeZone())).AddDate(0, 0, 1-days).Format(time.DateOnly)
	res := &coordinationv1.GetUsageResponse{Metadata: rpc.Metadata(s.Info)}
	var room object.Room
	add := func(d *storev1.UsageDay) (goOn bool) {
		if d.GetDate() < first {
			return false
		}
		if res.HasMore = !room.Fits(rpc.AnswerSize(d)); !res.GetHasMore() {
			res.Days = append(res.Days, d)
		}
		return !res.GetHasMore()
	}
	before := cmp.Or(req.GetBeforeDate(), beyondDates)
	if today := s.State.GetToday(); today != nil && today.GetDate() < before {
		add(today)
	}
	for more := true; more; {
		page, err := m.kind.Entries(ctx, id, inUsageDays, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize})
		if err != nil {
			return nil, err
		}
		more = page.More
		for _, e := range slices.Backward(page.Entries) {
			d, _ := e.Value.(*storev1.UsageDay)
			if before = e.Key; !add(d) {
				more = false
				break
			}
		}
	}
	slices.Reverse(res.GetDays())
	return res, nil
}

// beyondDates is behind every date.
const beyondDates = "~"
