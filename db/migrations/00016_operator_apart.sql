-- +goose Up

-- The server's login does not get holdfast_operator any more, which makes tenants and keys. What it did with it otherwise it
-- does in its other roles.

-- The sweep goes from tenant to tenant.
GRANT SELECT (tenant_id) ON holdfast.tenants TO holdfast_janitor;
CREATE POLICY tenants_janitor ON holdfast.tenants FOR SELECT TO holdfast_janitor USING (true);

-- Erasing a user deletes the user's keys. A service's keys are not in sight, and none can be made.
GRANT SELECT (tenant_id, owner_id), DELETE ON holdfast.api_keys TO holdfast_app;
CREATE POLICY api_keys_app ON holdfast.api_keys TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on'
    AND owner_id <> '');
REVOKE DELETE ON holdfast.api_keys FROM holdfast_operator;

-- The owner makes tenants and keys, and forced row-level security binds an owner who is no superuser. Where another role of
-- the cluster has made holdfast_operator, the owner may not grant it; `holdfast tenant` says then who has to.
-- +goose StatementBegin
DO $$
DECLARE
  grants_inherit boolean := current_setting('server_version_num')::integer >= 160000;
BEGIN
  IF NOT pg_has_role('holdfast_operator', CASE WHEN grants_inherit THEN 'SET' ELSE 'MEMBER' END) THEN
    EXECUTE 'GRANT holdfast_operator TO CURRENT_USER' || CASE WHEN grants_inherit THEN ' WITH INHERIT FALSE, SET TRUE' ELSE '' END;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  NULL;
END
$$;
-- +goose StatementEnd

-- +goose Down
GRANT DELETE ON holdfast.api_keys TO holdfast_operator;
DROP POLICY api_keys_app ON holdfast.api_keys;
REVOKE ALL ON holdfast.api_keys FROM holdfast_app;
DROP POLICY tenants_janitor ON holdfast.tenants;
REVOKE ALL ON holdfast.tenants FROM holdfast_janitor;
