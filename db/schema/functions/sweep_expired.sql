-- sweep_expired deletes a batch of expired objects with all their rows, and answers how many rows went and when the last
-- of the objects had expired: the next batch begins there, because the index still leads to the rows that are gone. What
-- another transaction holds is passed over: it creates the object again, or is another sweep. There is one statement for each object
-- and table, because a join would be planned by what the planner believes of the tables.
CREATE OR REPLACE FUNCTION holdfast.sweep_expired(
  p_after timestamptz,
  p_limit integer,
  OUT last_time timestamptz,
  OUT objects bigint,
  OUT terms bigint,
  OUT entries bigint,
  OUT events bigint,
  OUT timers bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  o record;
  s record;
  n bigint;
BEGIN
  last_time := p_after;
  objects := 0; terms := 0; entries := 0; events := 0; timers := 0;
  FOR o IN
    SELECT x.tenant_id, x.kind, x.object_id, x.expire_time FROM holdfast.objects x
    WHERE x.expire_time >= p_after AND x.expire_time <= clock_timestamp()
    ORDER BY x.expire_time
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  LOOP
    DELETE FROM holdfast.terms x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    terms := terms + n;
    DELETE FROM holdfast.entries x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    entries := entries + n;
    FOR s IN
      DELETE FROM holdfast.sleepers x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id
      RETURNING x.part, x.row_count
    LOOP
      IF s.part = 'entries' THEN
        entries := entries + s.row_count;
      ELSE
        events := events + s.row_count;
      END IF;
    END LOOP;
    DELETE FROM holdfast.events x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    events := events + n;
    DELETE FROM holdfast.timers x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    timers := timers + n;
    -- Last: while it is there the policies let us at the rows above.
    DELETE FROM holdfast.objects x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    objects := objects + 1;
    last_time := o.expire_time;
  END LOOP;
END
$$;

REVOKE ALL ON FUNCTION holdfast.sweep_expired FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.sweep_expired TO holdfast_janitor;
