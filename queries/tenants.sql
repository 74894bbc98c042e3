-- CreateTenant adds a tenant; nothing happens where it is there.
-- name: CreateTenant :execrows
INSERT INTO holdfast.tenants (tenant_id, title) VALUES (@tenant_id, @title) ON CONFLICT DO NOTHING;

-- ListTenants lists the tenants by id.
-- name: ListTenants :many
SELECT tenant_id, title, create_time FROM holdfast.tenants ORDER BY tenant_id;

-- TenantExists reports whether a tenant is there.
-- name: TenantExists :one
SELECT EXISTS (SELECT FROM holdfast.tenants WHERE tenant_id = @tenant_id);

-- CreateKey adds an API key.
-- name: CreateKey :exec
INSERT INTO holdfast.api_keys (tenant_id, key_id, owner_id, role, secret_hash, description)
VALUES (@tenant_id, @key_id, @owner_id, @role, @secret_hash, @description);

-- ListKeys lists a tenant's API keys, newest first, without their hashes.
-- name: ListKeys :many
SELECT tenant_id, key_id, owner_id, role, description, create_time, revoke_time
FROM holdfast.api_keys WHERE tenant_id = @tenant_id ORDER BY create_time DESC, key_id;

-- RevokeKey ends an API key; the first revocation's time stays.
-- name: RevokeKey :execrows
UPDATE holdfast.api_keys SET revoke_time = coalesce(revoke_time, clock_timestamp())
WHERE tenant_id = @tenant_id AND key_id = @key_id;

-- EnterAuth makes the rest of the transaction see the one key that a credential names.
-- name: EnterAuth :one
SELECT set_config('role', 'holdfast_auth', true), set_config('app.key_id', @key_id::text, true);

-- FindKey reads the keys of that id that are in force.
-- name: FindKey :many
SELECT tenant_id, owner_id, role, secret_hash FROM holdfast.api_keys
WHERE key_id = @key_id AND revoke_time IS NULL;
