-- +goose Up

-- A session's token names its user's object before the tenant is known: the authenticator sees the sessions of the users
-- that credentials name, and of these rows what it needs.
CREATE INDEX objects_sessions_idx ON holdfast.objects (object_id) WHERE kind = 'user_sessions';
GRANT SELECT (tenant_id, kind, object_id, owner_id, state, deleted, expire_time) ON holdfast.objects TO holdfast_auth;
-- A setting that was never set is NULL, and one that was set in an earlier transaction is empty.
CREATE POLICY objects_auth ON holdfast.objects FOR SELECT TO holdfast_auth
  USING (kind = 'user_sessions'
    AND object_id = ANY ((SELECT nullif(current_setting('app.session_objects', true), '')::text[])::text[]));

-- Open streams ask for many keys at once.
CREATE POLICY api_keys_auth_many ON holdfast.api_keys FOR SELECT TO holdfast_auth
  USING (key_id = ANY ((SELECT nullif(current_setting('app.key_ids', true), '')::text[])::text[]));

-- +goose Down
DROP POLICY api_keys_auth_many ON holdfast.api_keys;
DROP POLICY objects_auth ON holdfast.objects;
REVOKE SELECT (tenant_id, kind, object_id, owner_id, state, deleted, expire_time) ON holdfast.objects FROM holdfast_auth;
DROP INDEX holdfast.objects_sessions_idx;
