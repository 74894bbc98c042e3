package db

import (
	"context"
	"time"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// SessionRef names a session as its token does, before the tenant is known.
type SessionRef struct{ Object, Session string }

// FoundSession is a session as it is stored, and whose it is.
type FoundSession struct {
	Tenant identity.Tenant
	User   identity.User
	Record string // JSON
}

// Found is what there is of the credentials that were asked for, each at the index of its question: one or none. Ids are
// random, but uniqueness never crosses tenants.
type Found struct {
	Keys     [][]Key
	Sessions [][]FoundSession
	Now      time.Time // by the database's clock
}

// FindCredentials reads the API keys in force of some ids, and some sessions, in one round trip.
func (d *DB) FindCredentials(ctx context.Context, keys []string, sessions []SessionRef) (Found, error) {
	found := Found{Keys: make([][]Key, len(keys)), Sessions: make([][]FoundSession, len(sessions))}
	k := dbsqlc.FindKeysOfIDsParams{KeyIds: keys}
	for i := range keys {
		k.Ords = append(k.Ords, int32(i))
	}
	s := dbsqlc.FindSessionsParams{}
	for i, ref := range sessions {
		s.Ords = append(s.Ords, int32(i))
		s.ObjectIds = append(s.ObjectIds, ref.Object)
		s.SessionIds = append(s.SessionIds, ref.Session)
	}
	p := &Pipeline{}
	asked := d.clock.read()
	enter := dbsqlc.EnterVerificationParams{KeyIds: arrayLiteral(keys), SessionObjects: arrayLiteral(s.ObjectIds)}
	query(p, dbsqlc.EnterVerification, enter, func(r *dbsqlc.EnterVerificationRow) error {
		d.clock.sample(asked, r.Now)
		found.Now = r.Now
		return nil
	})
	if len(keys) > 0 {
		query(p, dbsqlc.FindKeysOfIDs, k, func(r *dbsqlc.FindKeysOfIDsRow) error {
			found.Keys[r.Ord] = append(found.Keys[r.Ord], Key{
				Tenant: identity.Tenant(r.TenantID), ID: keys[r.Ord], User: identity.User(r.OwnerID), SecretHash: r.SecretHash,
			})
			return nil
		})
	}
	if len(sessions) > 0 {
		query(p, dbsqlc.FindSessions, s, func(r *dbsqlc.FindSessionsRow) error {
			found.Sessions[r.Ord] = append(found.Sessions[r.Ord], FoundSession{
				Tenant: identity.Tenant(r.TenantID), User: identity.User(r.OwnerID), Record: r.Session,
			})
			return nil
		})
	}
	return found, d.Run(ctx, p)
}
