package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
	"holdfast/object"
)

type migrateStateCmd struct {
	databaseConfig

	Tenant []string      `help:"Only these tenants. Default: all." placeholder:"TENANT"`
	Batch  int           `help:"Objects that share a commit, up to 256." default:"100"`
	Pause  time.Duration `help:"How long to wait between batches, so that the callers of servers wait less." default:"50ms" placeholder:"DURATION"`
}

// Run rewrites what older releases have written in this release's form. It can be stopped, and begun again.
func (c *migrateStateCmd) Run(ctx context.Context, w *console) (err error) {
	if c.Pause < 0 || c.Batch < 1 || c.Batch > 256 {
		return wrongUsage("--pause is a duration, such as 50ms, and --batch is 1 to 256")
	}
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	if len(c.Tenant) == 0 {
		all, err := d.StoredTenants(ctx)
		if err != nil {
			return err
		}
		for _, t := range all {
			c.Tenant = append(c.Tenant, string(t))
		}
	}
	rt := object.NewRuntime(d, object.Config{CacheBytes: 1 << 20}) // nothing is read twice
	registerKinds(rt)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err = errors.Join(err, rt.Close(ctx))
	}()
	total := 0
	for _, t := range c.Tenant {
		ctx := identity.With(ctx, identity.Identity{Tenant: identity.Tenant(t), Service: true})
		for _, name := range rt.Kinds() {
			k, _ := rt.Kind(name)
			n, err := migrateKind(ctx, k, c.Batch, c.Pause)
			if total += n; n > 0 {
				fmt.Fprintf(w.stdout, "%s: %d of kind %s rewritten\n", t, n, name)
			}
			if err != nil {
				return fmt.Errorf("%s, kind %s, after %d objects: %w", t, name, n, err)
			}
		}
	}
	fmt.Fprintf(w.stdout, "%d objects rewritten; no older ones are left in %d tenants\n", total, len(c.Tenant))
	return nil
}

func migrateKind(ctx context.Context, k *object.Kind[proto.Message], batch int, pause time.Duration) (total int, err error) {
	for from := object.ID(""); ; {
		n, next, err := k.MigrateState(ctx, from, batch)
		if total += n; err != nil || next == "" {
			return total, err
		}
		from = next
		select {
		case <-ctx.Done():
			return total, ctx.Err()
		case <-time.After(pause):
		}
	}
}
