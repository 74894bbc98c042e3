-- EnterScope makes the rest of the transaction act for one tenant's callers: the role, and the settings that
-- row-level security reads. It answers the database's clock. Array statements are planned again at each run unless
-- told otherwise, which took a quarter of a read: hence the generic plan. A server that is cut off from Postgres between
-- the two round trips of a change would keep its locks as long as nobody notices: five seconds. A lock that
-- is held for longer ends the wait for it, and a statement that goes on for longer than any caller waits is canceled, so
-- that stuck transactions do not collect connections.
-- name: EnterScope :one
SELECT set_config('role', @role::text, true), set_config('app.tenant', @tenant_id::text, true),
  set_config('app.owners', @owners::text, true), set_config('app.service', @service::text, true),
  set_config('plan_cache_mode', 'force_generic_plan', true),
  set_config('idle_in_transaction_session_timeout', '5s', true), set_config('lock_timeout', '2s', true),
  set_config('statement_timeout', '15s', true), clock_timestamp()::timestamptz AS now;

-- CheckLogin tells what a login may do that the server's must not, and what it may not that it must.
-- name: CheckLogin :one
SELECT r.rolname::text AS login, r.rolsuper::boolean AS superuser,
  r.rolbypassrls::boolean AS bypasses_rls, r.rolcreaterole::boolean AS creates_roles,
  -- What it was granted, directly, and could enter, or grant itself the right to enter, and that leads to more than the server needs.
  ARRAY(SELECT DISTINCT d.rolname::text FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles d ON d.oid = a.roleid
    WHERE a.member = r.oid AND EXISTS (SELECT FROM pg_catalog.pg_roles m
      WHERE pg_has_role(d.oid, m.oid, 'MEMBER') AND (m.rolsuper OR m.rolbypassrls OR m.rolcreaterole
        OR m.rolname IN ('holdfast_operator', 'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
        OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('holdfast') AND c.relowner = m.oid)))
    ORDER BY 1)::text[] AS excess,
  -- From Postgres 16 on each grant says whether it is inherited, and the role only what new grants will say.
  (r.rolinherit OR EXISTS (SELECT FROM pg_catalog.pg_roles m WHERE m.rolname = ANY (@roles::text[])
    AND pg_has_role(current_user, m.oid, 'USAGE')))::boolean AS inherits,
  EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'holdfast' AND c.relkind = 'r' AND c.relowner = r.oid)::boolean AS owns_tables,
  (EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('public') AND c.relname = 'holdfast_schema')
    AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('holdfast_jobs') AND c.relname = 'river_job')
  )::boolean AS migrated,
  coalesce(has_schema_privilege(current_user, to_regnamespace('holdfast')::oid, 'USAGE'), false)::boolean AS has_usage,
  -- The job queue's tables: of several privileges in one string any would do.
  (coalesce(has_schema_privilege(current_user, to_regnamespace('holdfast_jobs')::oid, 'USAGE'), false)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('holdfast_jobs')
      AND CASE c.relkind
        WHEN 'r' THEN NOT (has_table_privilege(current_user, c.oid, 'SELECT') AND has_table_privilege(current_user, c.oid, 'INSERT')
          AND has_table_privilege(current_user, c.oid, 'UPDATE') AND has_table_privilege(current_user, c.oid, 'DELETE'))
        WHEN 'S' THEN NOT has_sequence_privilege(current_user, c.oid, 'USAGE')
        ELSE false END))::boolean AS has_jobs,
  -- From Postgres 16 on a member need not have the right to enter a role.
  (SELECT count(*) FROM pg_catalog.pg_roles m WHERE m.rolname = ANY (@roles::text[])
    AND pg_has_role(current_user, m.oid, CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)) AS member_of,
  current_setting('default_transaction_isolation')::text AS isolation,
  current_setting('server_version_num')::integer AS server_version
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user;
