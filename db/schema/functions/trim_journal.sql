-- trim_journal walks the journal from object to object, one probe of the primary key each, from behind the object that
-- at_tenant_id, at_kind and at_object_id name, and deletes events from before p_before. It stops after p_objects objects
-- or about p_events events and answers where; done: there are no more. An index by time would be quicker to trim by, and
-- would cost every write.
CREATE OR REPLACE FUNCTION holdfast.trim_journal(
  p_before timestamptz,
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
  o record;
  upto bigint; -- the newest version of the chunk that goes
  n bigint;
BEGIN
  objects := 0; events := 0; done := false;
  WHILE objects < p_objects LOOP
    SELECT x.tenant_id, x.kind, x.object_id, x.event_time INTO o FROM holdfast.events x
    WHERE (x.tenant_id, x.kind, x.object_id) > (at_tenant_id, at_kind, at_object_id)
    ORDER BY x.tenant_id, x.kind, x.object_id, x.version
    LIMIT 1;
    IF NOT FOUND THEN
      done := true;
      RETURN;
    END IF;
    n := CASE WHEN o.event_time < p_before THEN chunk ELSE 0 END;
    WHILE n = chunk LOOP
      IF events >= p_events THEN
        RETURN; -- the next call comes back to this object
      END IF;
      SELECT max(c.version) FILTER (WHERE c.event_time < p_before) INTO upto FROM (
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
