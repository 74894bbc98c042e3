package db

import (
	"strings"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Role is a database role that a transaction enters.
type Role string

// The roles, and what each may do.
const (
	// RoleApp reads and writes the objects of its scope's tenant and owners.
	RoleApp Role = "holdfast_app"
	// RoleAuth reads the one API key that a credential names.
	RoleAuth Role = "holdfast_auth"
	// RoleOperator makes tenants and API keys. The server's login may not enter it; see Operator.
	RoleOperator Role = "holdfast_operator"
	// RoleJanitor sees only what has expired.
	RoleJanitor Role = "holdfast_janitor"
	// RoleVerify reads the API keys and the sessions that credentials name.
	RoleVerify Role = "holdfast_verify"
)

// Scope is whom a transaction acts for: one tenant, and the owners whose rows it may touch beside the shared ones.
type Scope struct {
	Tenant identity.Tenant
	Owners []identity.User
	// Service opens every owner's rows.
	Service bool
}

func (s Scope) params() dbsqlc.EnterScopeParams {
	p := dbsqlc.EnterScopeParams{
		Role: string(RoleApp), TenantID: string(s.Tenant), Owners: arrayLiteral(s.Owners), Service: "off",
	}
	if s.Service {
		p.Service = "on"
	}
	return p
}

// arrayLiteral is the text form of a text[], which a setting must have.
func arrayLiteral[T ~string](elements []T) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, e := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(quoteElement.Replace(string(e)))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

var quoteElement = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
