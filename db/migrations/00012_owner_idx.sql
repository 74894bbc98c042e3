-- +goose Up

-- A user's objects of a kind, newest activity first, where a tenant has many users: without it the tenant's whole kind is read. It is
-- partial so that no other statement takes it for its own; see objects_activity_idx.
CREATE INDEX objects_owner_idx ON holdfast.objects (tenant_id, owner_id, kind, activity_time DESC, object_id DESC)
  WHERE NOT deleted AND owner_id <> '';

-- +goose Down
DROP INDEX holdfast.objects_owner_idx;
