package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"holdfast/handlers"
	"holdfast/identity"
)

// tenantCmd is `holdfast tenant`.
type tenantCmd struct {
	Create tenantCreateCmd `cmd:"" help:"Create a tenant."`
	List   tenantListCmd   `cmd:"" help:"List the tenants."`
}

// operatorConns is enough for a command that asks one thing after the other.
const operatorConns = 2

type tenantCreateCmd struct {
	ownerConfig

	Tenant string `arg:"" help:"Its id: 1 to 128 of A-Z a-z 0-9 . _ : -"`
	Title  string `help:"What people call it."`
}

// Run creates a tenant. One that is there already is no failure, so that scripts can repeat it.
func (c *tenantCreateCmd) Run(ctx context.Context, w *console) error {
	if !handlers.ValidTenant(identity.Tenant(c.Tenant)) {
		return wrongUsage("%q cannot be a tenant's id: it is 1 to 128 of A-Z a-z 0-9 . _ : -", c.Tenant)
	}
	o, err := c.operator(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	isNew, err := o.CreateTenant(ctx, identity.Tenant(c.Tenant), c.Title)
	if err != nil {
		return err
	}
	if !isNew {
		fmt.Fprintf(w.stdout, "tenant %s is there already\n", c.Tenant)
		return nil
	}
	fmt.Fprintf(w.stdout, "tenant %s is created\n", c.Tenant)
	return nil
}

type tenantListCmd struct{ ownerConfig }

// Run lists the tenants.
func (c *tenantListCmd) Run(ctx context.Context, w *console) error {
	o, err := c.operator(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	tenants, err := o.Tenants(ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TENANT\tCREATED\tTITLE")
	for _, r := range tenants {
		fmt.Fprintf(t, "%s\t%s\t%s\n", r.TenantID, r.CreateTime.UTC().Format(time.RFC3339), r.Title)
	}
	return t.Flush()
}
