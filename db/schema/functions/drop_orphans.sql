-- drop_orphans deletes rows left under the ids of objects that do not exist, so that a new object does not
-- inherit them. p_objects has the kinds and ids of objects that do not exist, or that this transaction has stored for the first
-- time. It deletes the rows of all owners.
CREATE OR REPLACE FUNCTION holdfast.drop_orphans(p_tenant_id text, p_objects jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  service CONSTANT text := current_setting('app.service');
  k text;
  o text;
BEGIN
  PERFORM set_config('app.service', 'on', true);
  FOR k, o IN
    SELECT n.kind, n.object_id FROM jsonb_to_recordset(p_objects) AS n (kind text, object_id text)
  LOOP
    -- Counted, because for EXISTS the planner takes whichever index it believes to find a first row soonest by.
    IF (SELECT count(*) FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.events x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.sleepers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.terms x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o) > 0
    THEN
      DELETE FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.events x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.sleepers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.terms x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
    END IF;
  END LOOP;
  PERFORM set_config('app.service', service, true);
END
$$;
REVOKE ALL ON FUNCTION holdfast.drop_orphans FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.drop_orphans TO holdfast_app;
