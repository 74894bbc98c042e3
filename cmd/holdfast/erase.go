package main

import (
	"context"
	"errors"
	"fmt"

	"holdfast/identity"
	"holdfast/object"
)

// eraseCmd is `holdfast erase`.
type eraseCmd struct {
	databaseConfig

	Tenant string `help:"The user's tenant." required:"" placeholder:"TENANT"`
	User   string `help:"The user. There is no way back." required:"" placeholder:"USER"`
}

// Run erases a user.
func (c *eraseCmd) Run(ctx context.Context, w *console) (err error) {
	if err := checkTenantAndUser(c.Tenant, c.User); err != nil {
		return err
	}
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	rt := object.NewRuntime(d, object.Config{})
	defer func() { err = errors.Join(err, rt.Close(context.WithoutCancel(ctx))) }()
	registerKinds(rt)
	erased, err := rt.EraseUser(identity.With(ctx, identity.Identity{Tenant: identity.Tenant(c.Tenant), Service: true}), identity.User(c.User))
	if err != nil {
		return fmt.Errorf("not all is erased, run it again: %w", err)
	}
	fmt.Fprintf(w.stdout, "deleted %v; took the user out of %d objects of others and %d events\n", erased.Deleted, erased.Changed, erased.Events)
	if len(erased.Left) > 0 {
		return fmt.Errorf("the user's id is still found in %v: in ids that cannot change, or written meanwhile", erased.Left)
	}
	return nil
}
