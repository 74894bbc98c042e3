-- trim_journal walks the journal from object to object, one probe of the primary key each, from behind the object that
-- at_tenant_id, at_kind and at_object_id name, and deletes events from before p_before, those of p_brief's kinds once they are a
-- day old. It stops after p_objects objects
-- or about p_events events and answers where; done: there are no more. An index by time would be quicker to trim by, and
-- would cost every write. The journal of an object that sleeps goes once all of it is too old, up to p_objects of them a call.
CREATE OR REPLACE FUNCTION holdfast.trim_journal(
  p_before timestamptz,
  p_brief text[],
  p_objects integer,
  p_events integer,
  INOUT at_tenant_id text,
  INOUT at_kind text,
  INOUT at_object_id text,
  OUT objects bigint,
  OUT events bigint,
  OUT done boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  chunk CONSTANT integer := 500;
  yesterday CONSTANT timestamptz := clock_timestamp() - interval '24 hours';
  before timestamptz; -- for the object's kind
  o record;
  upto bigint; -- the newest version of the chunk that goes
  n bigint;
  slept bigint; -- journals of sleepers that went
BEGIN
  objects := 0; done := false;
  WITH gone AS (
    DELETE FROM holdfast.sleepers s WHERE (s.tenant_id, s.kind, s.object_id, s.part) IN (
      SELECT x.tenant_id, x.kind, x.object_id, x.part FROM holdfast.sleepers x WHERE x.last_time < p_before ORDER BY x.last_time LIMIT p_objects)
    RETURNING s.row_count
  )
  SELECT count(*), coalesce(sum(gone.row_count), 0) INTO slept, events FROM gone;
  WHILE objects < p_objects LOOP
    SELECT x.tenant_id, x.kind, x.object_id, x.event_time INTO o FROM holdfast.events x
    WHERE (x.tenant_id, x.kind, x.object_id) > (at_tenant_id, at_kind, at_object_id)
    ORDER BY x.tenant_id, x.kind, x.object_id, x.version
    LIMIT 1;
    IF NOT FOUND THEN
      done := slept < p_objects;
      RETURN;
    END IF;
    before := CASE WHEN o.kind = ANY (p_brief) THEN yesterday ELSE p_before END;
    n := CASE WHEN o.event_time < before THEN chunk ELSE 0 END;
    WHILE n = chunk LOOP
      IF events >= p_events THEN
        RETURN; -- the next call comes back to this object
      END IF;
      SELECT max(c.version) FILTER (WHERE c.event_time < before) INTO upto FROM (
        SELECT x.version, x.event_time FROM holdfast.events x
        WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id
        ORDER BY x.version
        LIMIT chunk
      ) c;
      DELETE FROM holdfast.events x
      WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id AND x.version <= upto;
      GET DIAGNOSTICS n = ROW_COUNT;
      events := events + n;
    END LOOP;
    objects := objects + 1;
    at_tenant_id := o.tenant_id; at_kind := o.kind; at_object_id := o.object_id;
  END LOOP;
END
$$;

REVOKE ALL ON FUNCTION holdfast.trim_journal FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.trim_journal TO holdfast_janitor;
