-- +goose Up

-- Timers belong to the state: the row has them all, so the version that fences the state fences them too.
ALTER TABLE holdfast.objects ADD COLUMN timers jsonb; -- {name: due time}; NULL: none

-- The same timers by when to run them.
CREATE TABLE holdfast.timers (
  tenant_id  text COLLATE "C" NOT NULL,
  kind       text COLLATE "C" NOT NULL,
  object_id  text COLLATE "C" NOT NULL,
  name       text COLLATE "C" NOT NULL,
  owner_id   text COLLATE "C" NOT NULL,
  -- As the object set it.
  due_time   timestamptz NOT NULL,
  -- When to try next: later than due_time once a try has failed.
  next_time  timestamptz NOT NULL,
  -- Until then a process is at it. Not indexed, so that claiming is a HOT update.
  lease_time timestamptz,
  -- How many tries have failed, and what the last one failed with.
  attempts   integer NOT NULL DEFAULT 0,
  last_error text NOT NULL DEFAULT '',
  -- No longer tried.
  parked     boolean NOT NULL DEFAULT false,
  CONSTRAINT timers_pkey PRIMARY KEY (tenant_id, kind, object_id, name)
) WITH (fillfactor = 80);
CREATE INDEX timers_next_idx ON holdfast.timers (kind, next_time) WHERE NOT parked;

ALTER TABLE holdfast.timers ENABLE ROW LEVEL SECURITY;
ALTER TABLE holdfast.timers FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.timers TO holdfast_app;
CREATE POLICY timers_app ON holdfast.timers TO holdfast_app USING (
  tenant_id = (SELECT current_setting('app.tenant', true))
  AND ((SELECT current_setting('app.service', true)) = 'on'
    OR owner_id = ''
    OR owner_id = ANY ((SELECT current_setting('app.owners', true)::text[])::text[])));
-- The janitor sees only what is due, of whatever tenant, and says that it is at it.
GRANT SELECT, UPDATE (lease_time) ON holdfast.timers TO holdfast_janitor;
CREATE POLICY timers_janitor ON holdfast.timers TO holdfast_janitor
  USING (NOT parked AND next_time <= (SELECT clock_timestamp()));

-- claim_timers takes due timers of some kinds, kind by kind, the oldest first, and leaves them to the caller for a while.
-- What another process is at is passed over. A lease only spares work: what runs a timer once is the object's version.
-- The rows are found again by their place; one that moved between snapshot and lock is left for the next time. The
-- settings hold in the function only: where the planner knows too little of the table, it would rather read it all.
-- +goose StatementBegin
CREATE FUNCTION holdfast.claim_timers(p_kinds text[], p_at_most integer, p_lease_seconds double precision)
RETURNS SETOF holdfast.timers
LANGUAGE sql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
  WITH due AS MATERIALIZED (
    SELECT d.place FROM unnest(p_kinds) AS k
    CROSS JOIN LATERAL (
      SELECT x.ctid AS place FROM holdfast.timers x
      WHERE x.kind = k AND NOT x.parked AND x.next_time <= clock_timestamp()
        AND (x.lease_time IS NULL OR x.lease_time <= clock_timestamp())
      ORDER BY x.next_time
      LIMIT p_at_most
      FOR UPDATE SKIP LOCKED
    ) d
    LIMIT p_at_most
  )
  UPDATE holdfast.timers t SET lease_time = clock_timestamp() + make_interval(secs => p_lease_seconds)
  FROM due
  WHERE t.ctid = due.place
  RETURNING t.*
$$;
-- +goose StatementEnd

-- The function without timers stays beside this one, for servers of the release before while a release is rolled out.
-- store_changes is the write path's one statement per batch: it locks the objects, then stores them, their terms,
-- entries and events, or raises HF001 where any of them is not at the version that the caller computed from. Every
-- statement of a volatile function takes its own snapshot, so what follows the lock sees what the lock waited for;
-- lock and write as one statement lost updates when we measured it.
-- Rows of the o_ arrays are objects; the other arrays name theirs by its index in them. An empty string is no state,
-- no timers or no request id, and the year 1 is no expiry; an array may be NULL for none, and o_timers may be shorter
-- than the others.
-- +goose StatementBegin
CREATE FUNCTION holdfast.store_changes(
  p_tenant_id text,
  p_locks bigint[],
  o_kind text[],
  o_id text[],
  o_owner_id text[],
  o_expected bigint[],
  o_version bigint[],
  o_schema_version integer[],
  o_state text[],
  o_create_time timestamptz[],
  o_update_time timestamptz[],
  o_activity_time timestamptz[],
  o_expire_time timestamptz[],
  -- Drop what an earlier life of the object left: it is made anew over a deleted or expired one.
  o_reborn boolean[],
  -- Replace the object's terms.
  o_retermed boolean[],
  -- All timers of the object.
  o_timers text[],
  t_object integer[],
  t_term text[],
  -- Keys that the caller took to be absent without looking.
  a_object integer[],
  a_collection text[],
  a_key text[],
  e_object integer[],
  e_collection text[],
  e_key text[],
  e_version bigint[],
  e_body text[],
  d_object integer[],
  d_collection text[],
  d_key text[],
  -- Timers to set and to clear.
  m_object integer[],
  m_name text[],
  m_due_time timestamptz[],
  c_object integer[],
  c_name text[],
  v_object integer[],
  v_version bigint[],
  v_event_type text[],
  v_actor text[],
  v_event_time timestamptz[],
  v_request_id text[],
  v_request_key bytea[],
  v_request_hash bytea[],
  v_reply bytea[],
  v_undo text[]
) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  never CONSTANT timestamptz := '0001-01-01 00:00:00+00';
  fenced bigint; -- rows that passed the fence
BEGIN
  PERFORM count(pg_advisory_xact_lock(k)) FROM unnest(p_locks) AS k;

  -- The rows come of subscripts, because unnest() of eleven arrays would fill eleven tuple stores.
  -- Whatever the planner believes, ON CONFLICT finds the row by the primary key. As UPDATE … FROM unnest() the whole kind
  -- was read on a table without statistics, and as one UPDATE an object it took half as long again.
  WITH stored AS (
    INSERT INTO holdfast.objects AS o (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
      deleted, create_time, update_time, activity_time, expire_time, timers)
    SELECT p_tenant_id, o_kind[i], o_id[i], o_owner_id[i], o_expected[i], o_version[i], o_schema_version[i],
      nullif(o_state[i], '')::jsonb, o_state[i] = '', o_create_time[i], o_update_time[i], o_activity_time[i],
      nullif(o_expire_time[i], never), nullif(o_timers[i], '')::jsonb
    FROM generate_series(1, cardinality(o_id)) AS i
    ON CONFLICT (tenant_id, kind, object_id) DO UPDATE SET owner_id = EXCLUDED.owner_id,
      base_version = EXCLUDED.base_version, version = EXCLUDED.version, schema_version = EXCLUDED.schema_version,
      state = EXCLUDED.state, deleted = EXCLUDED.deleted, create_time = EXCLUDED.create_time,
      update_time = EXCLUDED.update_time, activity_time = EXCLUDED.activity_time, expire_time = EXCLUDED.expire_time,
      timers = EXCLUDED.timers
    WHERE o.version = EXCLUDED.base_version
    -- A row that was inserted has no xmax. One that should have been there was swept meanwhile.
    RETURNING xmax = 0 AND o.base_version > 0 AS swept
  )
  SELECT count(*) FILTER (WHERE NOT swept) INTO fenced FROM stored;
  IF fenced <> cardinality(o_id) THEN
    RAISE EXCEPTION 'of % objects % are at the expected version', cardinality(o_id), fenced USING ERRCODE = 'HF001';
  END IF;

  IF true = ANY (o_reborn) OR true = ANY (o_retermed) THEN
    FOR i IN 1 .. cardinality(o_id) LOOP
      IF o_reborn[i] THEN
        DELETE FROM holdfast.entries
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i];
        DELETE FROM holdfast.timers
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i];
      END IF;
      IF o_retermed[i] THEN
        DELETE FROM holdfast.terms
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i];
      END IF;
    END LOOP;
  END IF;

  IF cardinality(t_object) > 0 THEN
    INSERT INTO holdfast.terms (tenant_id, kind, object_id, term, owner_id, activity_time)
    SELECT p_tenant_id, o_kind[t_object[i]], o_id[t_object[i]], t_term[i], o_owner_id[t_object[i]],
      o_activity_time[t_object[i]]
    FROM generate_series(1, cardinality(t_object)) AS i;
  END IF;

  FOR i IN 1 .. coalesce(cardinality(a_object), 0) LOOP
    PERFORM FROM holdfast.entries
    WHERE tenant_id = p_tenant_id AND kind = o_kind[a_object[i]] AND object_id = o_id[a_object[i]]
      AND collection = a_collection[i] AND key = a_key[i];
    IF FOUND THEN
      RAISE EXCEPTION 'entry % of object % is there', a_key[i], o_id[a_object[i]] USING ERRCODE = 'HF001';
    END IF;
  END LOOP;

  IF cardinality(e_object) > 0 THEN
    INSERT INTO holdfast.entries AS e (tenant_id, kind, object_id, collection, key, owner_id, version, body)
    SELECT p_tenant_id, o_kind[e_object[i]], o_id[e_object[i]], e_collection[i], e_key[i], o_owner_id[e_object[i]],
      e_version[i], e_body[i]::jsonb
    FROM generate_series(1, cardinality(e_object)) AS i
    ON CONFLICT (tenant_id, kind, object_id, collection, key)
      DO UPDATE SET version = EXCLUDED.version, body = EXCLUDED.body;
  END IF;

  FOR i IN 1 .. coalesce(cardinality(d_object), 0) LOOP
    DELETE FROM holdfast.entries
    WHERE tenant_id = p_tenant_id AND kind = o_kind[d_object[i]] AND object_id = o_id[d_object[i]]
      AND collection = d_collection[i] AND key = d_key[i];
  END LOOP;

  FOR i IN 1 .. coalesce(cardinality(c_object), 0) LOOP
    DELETE FROM holdfast.timers
    WHERE tenant_id = p_tenant_id AND kind = o_kind[c_object[i]] AND object_id = o_id[c_object[i]] AND name = c_name[i];
  END LOOP;

  IF cardinality(m_object) > 0 THEN
    INSERT INTO holdfast.timers AS m (tenant_id, kind, object_id, name, owner_id, due_time, next_time)
    SELECT p_tenant_id, o_kind[m_object[i]], o_id[m_object[i]], m_name[i], o_owner_id[m_object[i]], m_due_time[i],
      m_due_time[i]
    FROM generate_series(1, cardinality(m_object)) AS i
    ON CONFLICT (tenant_id, kind, object_id, name) DO UPDATE SET due_time = EXCLUDED.due_time,
      next_time = EXCLUDED.next_time, lease_time = NULL, attempts = 0, last_error = '', parked = false;
  END IF;

  INSERT INTO holdfast.events (tenant_id, kind, object_id, version, owner_id, event_type, actor, event_time,
    request_id, request_key, request_hash, reply, undo)
  SELECT p_tenant_id, o_kind[v_object[i]], o_id[v_object[i]], v_version[i], o_owner_id[v_object[i]], v_event_type[i],
    v_actor[i], v_event_time[i], nullif(v_request_id[i], ''), v_request_key[i], v_request_hash[i], v_reply[i],
    v_undo[i]::jsonb
  FROM generate_series(1, cardinality(v_object)) AS i;

  RETURN clock_timestamp();
END
$$;
-- +goose StatementEnd
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA holdfast FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA holdfast TO holdfast_app;
REVOKE ALL ON FUNCTION holdfast.claim_timers FROM holdfast_app;
GRANT EXECUTE ON FUNCTION holdfast.claim_timers TO holdfast_janitor;

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE (SELECT 'DROP FUNCTION ' || oid::regprocedure FROM pg_proc
    WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' AND 'o_timers' = ANY (proargnames));
END
$$;
-- +goose StatementEnd
DROP FUNCTION holdfast.claim_timers;
DROP TABLE holdfast.timers;
ALTER TABLE holdfast.objects DROP COLUMN timers;
