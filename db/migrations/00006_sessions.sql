-- +goose Up

-- Sessions have states that holdfast_auth has no business with, so a role of its own verifies them. See 00001_init.sql for
-- why the role may be there already.
-- +goose StatementBegin
DO $$
BEGIN
  CREATE ROLE holdfast_verify NOLOGIN NOINHERIT NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL;
END
$$;
-- +goose StatementEnd
GRANT USAGE ON SCHEMA holdfast TO holdfast_verify;

-- A session's token names its user's object before the tenant is known: the role sees the sessions of the users whom
-- credentials name, and of these rows what it needs. A setting that was never set is NULL, and one that was set in an
-- earlier transaction is empty.
CREATE INDEX objects_sessions_idx ON holdfast.objects (object_id) WHERE kind = 'user_sessions';
GRANT SELECT (tenant_id, kind, object_id, owner_id, state, expire_time) ON holdfast.objects TO holdfast_verify;
CREATE POLICY objects_verify ON holdfast.objects FOR SELECT TO holdfast_verify
  USING (kind = 'user_sessions'
    AND object_id = ANY ((SELECT nullif(current_setting('app.session_objects', true), '')::text[])::text[]));

-- Open streams are verified again, many keys at once.
GRANT SELECT ON holdfast.api_keys TO holdfast_verify;
CREATE POLICY api_keys_verify ON holdfast.api_keys FOR SELECT TO holdfast_verify
  USING (key_id = ANY ((SELECT nullif(current_setting('app.key_ids', true), '')::text[])::text[]));

-- +goose Down
DROP POLICY api_keys_verify ON holdfast.api_keys;
REVOKE ALL ON holdfast.api_keys FROM holdfast_verify;
DROP POLICY objects_verify ON holdfast.objects;
REVOKE ALL ON holdfast.objects FROM holdfast_verify;
DROP INDEX holdfast.objects_sessions_idx;
REVOKE USAGE ON SCHEMA holdfast FROM holdfast_verify;
