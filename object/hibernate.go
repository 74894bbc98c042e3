package object

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// errAsleep unwinds a read or a change that needs the entries or events of an object that sleeps. It does not leave the runtime.
var errAsleep = errors.New("object: the object sleeps")

// awake runs a read of one object. While that returns errAsleep, it wakes the object and runs the read again.
func (rt *Runtime) awake(ctx context.Context, at key, read func() error) error {
	for {
		err := read()
		if !errors.Is(err, errAsleep) {
			return err
		}
		if err := rt.wake(ctx, at); err != nil {
			return err
		}
	}
}

// wake puts back the entries and events of an object that sleeps. It makes no version and tells no watcher, because nothing changes.
func (rt *Runtime) wake(ctx context.Context, at key) error {
	woke, err := rt.db.Wake(ctx, sleeperOf(at))
	if err != nil {
		return fmt.Errorf("waking %s %s: %w", at.Kind, at.ID, err)
	}
	if woke {
		rt.metrics.woken.Inc()
	}
	return nil
}

func sleeperOf(k key) db.Sleeper {
	return db.Sleeper{Tenant: k.Tenant, Kind: k.Kind, ID: string(k.ID), Lock: k.Lock()}
}

// wakeSleepers commits the works of a batch whose objects are awake, wakes the other objects, and returns the works of these.
func (rt *Runtime) wakeSleepers(works []*work) (sleeping []*work, err error) {
	var rest []*work
	for _, w := range works {
		if w.asleep {
			sleeping = append(sleeping, w)
		} else {
			rest = append(rest, w)
		}
	}
	if len(rest) > 0 {
		rt.commitSure(rest)
	}
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	for _, w := range sleeping {
		if err := rt.wake(ctx, w.box.key); err != nil {
			return sleeping, err
		}
	}
	return sleeping, nil
}

// HibernateConfig says which objects Hibernate puts to sleep. The zero HibernateConfig has the defaults.
type HibernateConfig struct {
	// Idle is for how long nobody has touched an object. It must be kept for as long again. 0: 24 h.
	Idle time.Duration
	// LeastRows is from how many entries and events on it is worth it. 0: 8.
	LeastRows int
	// PerSecond is how many objects are put to sleep in a second. 0: 20.
	PerSecond int
}

// DefaultHibernateIdle is the default of HibernateConfig.Idle.
const DefaultHibernateIdle = 24 * time.Hour

func (c *HibernateConfig) defaults() {
	if c.Idle <= 0 {
		c.Idle = DefaultHibernateIdle
	}
	if c.LeastRows <= 0 {
		c.LeastRows = 8
	}
	if c.PerSecond <= 0 {
		c.PerSecond = 20
	}
}

// Hibernated is what Hibernate did. Bytes are those of the rows, without indexes.
type Hibernated struct{ Objects, BytesBefore, BytesAfter int64 }

// Add adds what was done elsewhere.
func (h *Hibernated) Add(o Hibernated) {
	h.Objects += o.Objects
	h.BytesBefore += o.BytesBefore
	h.BytesAfter += o.BytesAfter
}

// Hibernate puts to sleep the objects of the caller's tenant that nobody has touched for a while and that are not too long: their
// entries and events are compressed, until someone reads or changes them. It waits for no writer. It may be ended at any time, run
// again, and run next to another. The caller is a service. It returns what it did, also with an error.
func (rt *Runtime) Hibernate(ctx context.Context, c HibernateConfig) (total Hibernated, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return total, err
	}
	if !caller.Service {
		return total, fmt.Errorf("%w: a service puts objects to sleep", ErrInvalid)
	}
	c.defaults()
	pace := rate.NewLimiter(rate.Limit(c.PerSecond), 1)
	since, until := rt.db.Now().Add(-c.Idle), rt.db.Now().Add(c.Idle)
	for _, kind := range rt.Kinds() {
		const pageSize = 200
		find := dbsqlc.FindIdleParams{
			TenantID: string(caller.Tenant), Kind: kind, LeastRows: int32(min(c.LeastRows, db.MostSleeperRows)), Since: since, Until: until, //nolint:gosec // it is small
			BeforeTime: since, BeforeID: beyondAll, PageSize: pageSize,
		}
		for more := true; more; {
			page, err := rt.db.FindIdle(ctx, find)
			if err != nil {
				return total, err
			}
			for _, o := range page {
				find.BeforeTime, find.BeforeID = o.ActivityTime, o.ObjectID
				if !o.Idle {
					continue
				}
				if err := pace.Wait(ctx); err != nil {
					return total, err
				}
				before, after, err := rt.db.Sleep(ctx, sleeperOf(key{Tenant: caller.Tenant, Kind: kind, ID: ID(o.ObjectID)}), since, until)
				if err != nil {
					return total, fmt.Errorf("putting %s %s to sleep: %w", kind, o.ObjectID, err)
				}
				if after > 0 {
					total.Add(Hibernated{1, before, after})
					rt.metrics.hibernated.Inc()
				}
			}
			more = len(page) == pageSize
		}
	}
	return total, nil
}

// beyondAll is greater than every id.
const beyondAll = "\U0010FFFF"
