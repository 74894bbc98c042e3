-- store_changes stores a batch of one tenant's changes. It takes the objects' locks, stores the objects, and then what belongs
-- to them; it raises HF001, and stores nothing, where an object or an entry is not as the caller computed from. Each statement
-- of a volatile function has its own snapshot, so those behind the locks see what the locks waited for. Lock and write in one
-- statement lost updates when we measured it.
--
-- A jsonb parameter is an array of rows; NULL: none. A row has the table's columns, and one that it leaves out is NULL. So a
-- column that a release adds needs no other function, and servers of two releases can use one database.
CREATE OR REPLACE FUNCTION holdfast.store_changes(
  p_tenant_id text,
  p_locks     bigint[], -- ascending; NULL: the transaction has them
  p_objects   jsonb,    -- "reborn": this life begins over a deleted or expired one, whose rows go
  p_terms     jsonb,    -- "terms": all of the object's, instead of those it had
  p_added     jsonb,    -- entries that are not there
  p_replaced  jsonb,    -- entries that may be there; without a body: to delete
  p_absent    jsonb,    -- keys of entries that must not be there
  p_timers    jsonb,    -- without a due time: to clear
  p_events    jsonb
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  service CONSTANT text := current_setting('app.service', true);
  fenced bigint; -- objects that passed the fence
  r record;
BEGIN
  IF p_locks IS NOT NULL THEN
    PERFORM count(pg_advisory_xact_lock(k)) FROM unnest(p_locks) AS k;
    -- The caller computed before its only round trip, by its estimate of this clock. If either clock was set since, the change
    -- must not store wrong times or end what has not expired: the caller computes again, by this clock. A change waits for less
    -- than 20 s, and processes' estimates differ by less.
    IF clock_timestamp() - (p_objects -> 0 ->> 'update_time')::timestamptz NOT BETWEEN '-20 s' AND '20 s' THEN
      RAISE EXCEPTION 'computed as of %, which is not now', p_objects -> 0 ->> 'update_time' USING ERRCODE = 'HF001';
    END IF;
  END IF;

  -- Whatever the planner believes of the table, ON CONFLICT finds the row by the primary key: an UPDATE with FROM read the whole
  -- kind on a table without statistics. A version alone does not say which life of the object it is of, because a swept object
  -- begins at 1 again: the row must be of the life that the change continues, or one that is over. What sleeps has to wake first.
  WITH stored AS (
    INSERT INTO holdfast.objects AS o (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
      deleted, create_time, update_time, activity_time, expire_time, timers)
    SELECT p_tenant_id, n.kind, n.object_id, n.owner_id, n.base_version, n.version, n.schema_version, n.state,
      n.state IS NULL, n.create_time, n.update_time, n.activity_time, n.expire_time, n.timers
    FROM jsonb_to_recordset(p_objects) AS n (kind text, object_id text, owner_id text, base_version bigint, version bigint,
      schema_version integer, state jsonb, create_time timestamptz, update_time timestamptz, activity_time timestamptz,
      expire_time timestamptz, timers jsonb)
    ON CONFLICT (tenant_id, kind, object_id) DO UPDATE SET owner_id = EXCLUDED.owner_id,
      base_version = EXCLUDED.base_version, version = EXCLUDED.version, schema_version = EXCLUDED.schema_version,
      state = EXCLUDED.state, deleted = EXCLUDED.deleted, create_time = EXCLUDED.create_time,
      update_time = EXCLUDED.update_time, activity_time = EXCLUDED.activity_time, expire_time = EXCLUDED.expire_time,
      timers = EXCLUDED.timers
    WHERE o.version = EXCLUDED.base_version AND NOT o.asleep
      AND (o.create_time = EXCLUDED.create_time OR o.create_time < EXCLUDED.create_time
        AND (o.deleted OR o.expire_time <= EXCLUDED.create_time))
    -- An inserted row has no xmax. If the change built on a version, the row should have been there: it was swept since.
    RETURNING xmax = 0 AND o.base_version > 0 AS swept
  )
  SELECT count(*) FILTER (WHERE NOT swept) INTO fenced FROM stored;
  IF fenced <> jsonb_array_length(p_objects) THEN
    RAISE EXCEPTION 'of % objects % are at the expected version', jsonb_array_length(p_objects), fenced USING ERRCODE = 'HF001';
  END IF;

  IF p_objects @> '[{"base_version": 0}]' THEN
    PERFORM holdfast.drop_orphans(p_tenant_id, jsonb_agg(n)) FROM jsonb_array_elements(p_objects) AS n
    WHERE n -> 'base_version' = '0';
  END IF;

  IF p_objects @> '[{"reborn": true}]' THEN
    PERFORM set_config('app.service', 'on', true); -- the rows of all owners go
    FOR r IN SELECT * FROM jsonb_to_recordset(p_objects) AS n (kind text, object_id text, reborn boolean) WHERE n.reborn LOOP
      DELETE FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id;
      DELETE FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id;
      -- A request id counts within one life. (IS NOT NULL made the planner read the whole index that has this condition.)
      UPDATE holdfast.events x SET request_key = NULL
      WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id AND coalesce(x.request_key, '') <> '';
    END LOOP;
    PERFORM set_config('app.service', service, true);
  END IF;

  IF p_terms IS NOT NULL THEN
    FOR r IN SELECT * FROM jsonb_to_recordset(p_terms) AS n (kind text, object_id text) LOOP
      DELETE FROM holdfast.terms x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id;
    END LOOP;
    INSERT INTO holdfast.terms (tenant_id, kind, object_id, term, owner_id, activity_time)
    SELECT p_tenant_id, n.kind, n.object_id, t.term, n.owner_id, n.activity_time
    FROM jsonb_to_recordset(p_terms) AS n (kind text, object_id text, owner_id text, activity_time timestamptz, terms jsonb)
    CROSS JOIN LATERAL jsonb_array_elements_text(n.terms) AS t (term);
  END IF;

  IF p_absent IS NOT NULL THEN
    FOR r IN SELECT * FROM jsonb_to_recordset(p_absent) AS n (kind text, object_id text, collection text, key text) LOOP
      PERFORM FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id
        AND x.collection = r.collection AND x.key = r.key;
      IF FOUND THEN
        RAISE EXCEPTION 'entry % of object % is there', r.key, r.object_id USING ERRCODE = 'HF001';
      END IF;
    END LOOP;
  END IF;

  -- A plain INSERT takes a fifth less than one that is ready to update, and most entries are new. If one is there, the primary
  -- key says so.
  IF p_added IS NOT NULL THEN
    INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body, owned)
    SELECT p_tenant_id, n.kind, n.object_id, n.collection, n.key, n.owner_id, n.version, n.body, coalesce(n.owned, false)
    FROM jsonb_to_recordset(p_added) AS n (kind text, object_id text, collection text, key text, owner_id text, version bigint,
      body jsonb, owned boolean);
  END IF;

  IF p_replaced IS NOT NULL THEN
    FOR r IN SELECT * FROM jsonb_to_recordset(p_replaced) AS n (kind text, object_id text, collection text, key text, body jsonb)
      WHERE n.body IS NULL
    LOOP
      DELETE FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id
        AND x.collection = r.collection AND x.key = r.key;
    END LOOP;
    INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body, owned)
    SELECT p_tenant_id, n.kind, n.object_id, n.collection, n.key, n.owner_id, n.version, n.body, coalesce(n.owned, false)
    FROM jsonb_to_recordset(p_replaced) AS n (kind text, object_id text, collection text, key text, owner_id text,
      version bigint, body jsonb, owned boolean)
    WHERE n.body IS NOT NULL
    ON CONFLICT (tenant_id, kind, object_id, collection, key) DO UPDATE SET owner_id = EXCLUDED.owner_id,
      version = EXCLUDED.version, body = EXCLUDED.body, owned = EXCLUDED.owned;
  END IF;

  IF p_timers IS NOT NULL THEN
    FOR r IN SELECT * FROM jsonb_to_recordset(p_timers) AS n (kind text, object_id text, name text, due_time timestamptz)
      WHERE n.due_time IS NULL
    LOOP
      DELETE FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = r.kind AND x.object_id = r.object_id
        AND x.name = r.name;
    END LOOP;
    INSERT INTO holdfast.timers (tenant_id, kind, object_id, name, owner_id, due_time, next_time)
    SELECT p_tenant_id, n.kind, n.object_id, n.name, n.owner_id, n.due_time, n.due_time
    FROM jsonb_to_recordset(p_timers) AS n (kind text, object_id text, name text, owner_id text, due_time timestamptz)
    WHERE n.due_time IS NOT NULL
    ON CONFLICT (tenant_id, kind, object_id, name) DO UPDATE SET due_time = EXCLUDED.due_time,
      next_time = EXCLUDED.next_time, lease_time = NULL, attempts = 0, last_error = '', parked = false;
  END IF;

  INSERT INTO holdfast.events (tenant_id, kind, object_id, version, owner_id, event_type, actor, event_time, request_id,
    request_key, request_hash, reply, undo)
  SELECT p_tenant_id, n.kind, n.object_id, n.version, n.owner_id, n.event_type, n.actor, n.event_time, n.request_id,
    n.request_key, n.request_hash, n.reply, n.undo
  FROM jsonb_to_recordset(p_events) AS n (kind text, object_id text, version bigint, owner_id text, event_type text, actor text,
    event_time timestamptz, request_id text, request_key bytea, request_hash bytea, reply bytea, undo jsonb);

  RETURN clock_timestamp();
END
$$;
REVOKE ALL ON FUNCTION holdfast.store_changes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.store_changes TO holdfast_app;
