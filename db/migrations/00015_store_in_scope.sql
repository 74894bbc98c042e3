-- +goose Up

-- store_change takes its lock without a statement of its own, and compares intervals instead of numbers.
-- store_change_in_scope is store_change that enters the scope first: one statement less to send, parse and answer. It is
-- store_change but for that. Everybody may run it, because it begins by entering holdfast_app, which only those may who are
-- members: it gives nobody a right. The statements in it are planned and checked for that role.
-- +goose StatementBegin
DO $do$
DECLARE
  def text := pg_get_functiondef('holdfast.store_change'::regproc);
  was text := def;
BEGIN
  def := replace(def, 'PERFORM pg_advisory_xact_lock(p_lock);
    IF abs(extract(epoch FROM clock_timestamp() - p_update_time)) > 20 THEN',
    'IF pg_advisory_xact_lock(p_lock) IS NULL OR clock_timestamp() - p_update_time NOT BETWEEN ''-20 s'' AND ''20 s'' THEN');
  ASSERT was <> def, 'the lock of store_change is not where it was';
  EXECUTE def;
  was := def;
  def := replace(def, 'FUNCTION holdfast.store_change(', 'FUNCTION holdfast.store_change_in_scope(s_tenant_id text, s_owners text, s_service text, ');
  ASSERT was <> def, 'the head of store_change is not as it was';
  was := def;
  def := replace(def, 'packed_upto jsonb;
BEGIN
', 'packed_upto jsonb;
  entered text;
BEGIN
  entered := set_config(''role'', ''holdfast_app'', true) || set_config(''app.tenant'', s_tenant_id, true)
    || set_config(''app.owners'', s_owners, true) || set_config(''app.service'', s_service, true)
    || set_config(''plan_cache_mode'', ''force_generic_plan'', true) || set_config(''lock_timeout'', ''2s'', true);
');
  ASSERT was <> def, 'the variables of store_change are not where they were';
  EXECUTE def;
END
$do$;
-- +goose StatementEnd
GRANT EXECUTE ON FUNCTION holdfast.store_change_in_scope TO PUBLIC;

-- +goose Down
DROP FUNCTION holdfast.store_change_in_scope;
-- +goose StatementBegin
DO $do$
BEGIN
  EXECUTE replace(pg_get_functiondef('holdfast.store_change'::regproc),
    'IF pg_advisory_xact_lock(p_lock) IS NULL OR clock_timestamp() - p_update_time NOT BETWEEN ''-20 s'' AND ''20 s'' THEN',
    'PERFORM pg_advisory_xact_lock(p_lock);
    IF abs(extract(epoch FROM clock_timestamp() - p_update_time)) > 20 THEN');
END
$do$;
-- +goose StatementEnd
