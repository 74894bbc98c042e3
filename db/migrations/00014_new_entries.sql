-- +goose Up

-- drop_orphans deletes rows that name an object which is not there, such as those of an import that was broken off by an
-- earlier release, so that nobody who creates the object inherits them. The caller holds the object's lock, or has stored
-- its row as the first one, so such rows are nobody's, whoever owned them: hence all owners.
-- +goose StatementBegin
CREATE FUNCTION holdfast.drop_orphans(p_tenant_id text, o_kind text[], o_id text[], o_expected bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  service CONSTANT text := current_setting('app.service');
  k text;
  o text;
BEGIN
  PERFORM set_config('app.service', 'on', true);
  FOR i IN 1 .. coalesce(cardinality(o_id), 0) LOOP
    CONTINUE WHEN o_expected[i] <> 0;
    k := o_kind[i];
    o := o_id[i];
    -- Counted, because for EXISTS the planner takes whichever index it believes to find a first row soonest by.
    IF (SELECT count(*) FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.events x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.packs x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.terms x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o)
      + (SELECT count(*) FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o) > 0
    THEN
      DELETE FROM holdfast.entries x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.events x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.packs x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.terms x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
      DELETE FROM holdfast.timers x WHERE x.tenant_id = p_tenant_id AND x.kind = k AND x.object_id = o;
    END IF;
  END LOOP;
  PERFORM set_config('app.service', service, true);
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION holdfast.drop_orphans FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.drop_orphans TO holdfast_app;

-- store_changes, written anew with what releases have added to it since, and with e_new: most batches only add entries, and
-- a plain INSERT takes a fifth less of a batch than one that is ready to update. The primary key then tells where one was
-- there, which is also the proof that keys taken to be absent were. The function of the release before stays for its servers.
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
  -- Keys that the caller took to be absent without looking; where e_new is true, but for those of entries.
  a_object integer[],
  a_collection text[],
  a_key text[],
  e_object integer[],
  e_collection text[],
  e_key text[],
  e_version bigint[],
  e_body text[],
  -- None of the entries was there before, as far as the caller knows.
  e_new boolean,
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
  packed_of jsonb; -- objects.packed of those that have packs, by name
BEGIN
  PERFORM count(pg_advisory_xact_lock(k)) FROM unnest(p_locks) AS k;
  IF p_locks IS NOT NULL AND abs(extract(epoch FROM clock_timestamp() - o_update_time[1])) > 20 THEN
    RAISE EXCEPTION 'computed as of %, which is not now', o_update_time[1] USING ERRCODE = 'HF001';
  END IF;

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
      AND (o.create_time = EXCLUDED.create_time OR o.create_time < EXCLUDED.create_time
        AND (o.deleted OR o.expire_time <= EXCLUDED.create_time))
    -- A row that was inserted has no xmax. One that should have been there was swept meanwhile.
    RETURNING xmax = 0 AND o.base_version > 0 AS swept,
      CASE WHEN o.packed IS NOT NULL THEN o.kind || '/' || o.object_id END AS name, o.packed AS packs
  )
  SELECT count(*) FILTER (WHERE NOT swept), jsonb_object_agg(name, packs) FILTER (WHERE packs IS NOT NULL)
  INTO fenced, packed_of FROM stored;
  IF fenced <> cardinality(o_id) THEN
    RAISE EXCEPTION 'of % objects % are at the expected version', cardinality(o_id), fenced USING ERRCODE = 'HF001';
  END IF;

  IF 0 = ANY (o_expected) THEN
    PERFORM holdfast.drop_orphans(p_tenant_id, o_kind, o_id, o_expected);
  END IF;

  IF packed_of IS NOT NULL THEN
    PERFORM holdfast.make_room(p_tenant_id, packed_of, o_kind, o_id, o_reborn, a_object || e_object || d_object,
      a_collection || e_collection || d_collection, a_key || e_key || d_key);
  END IF;

  IF true = ANY (o_reborn) OR true = ANY (o_retermed) THEN
    FOR i IN 1 .. cardinality(o_id) LOOP
      IF o_reborn[i] THEN
        DELETE FROM holdfast.entries
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i];
        DELETE FROM holdfast.timers
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i];
        -- A request id counts within one life. (With IS NOT NULL the planner took the index that has this condition, and
        -- read it from end to end.)
        UPDATE holdfast.events SET request_key = NULL
        WHERE tenant_id = p_tenant_id AND kind = o_kind[i] AND object_id = o_id[i] AND coalesce(request_key, '') <> '';
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

  IF e_new AND cardinality(e_object) > 0 THEN
    INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
    SELECT p_tenant_id, o_kind[e_object[i]], o_id[e_object[i]], e_collection[i], e_key[i], o_owner_id[e_object[i]],
      e_version[i], e_body[i]::jsonb
    FROM generate_series(1, cardinality(e_object)) AS i;
  ELSIF cardinality(e_object) > 0 THEN
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
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE (SELECT format('REVOKE ALL ON FUNCTION %1$s FROM PUBLIC; GRANT EXECUTE ON FUNCTION %1$s TO holdfast_app', oid::regprocedure)
    FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' AND 'e_new' = ANY (proargnames));
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE (SELECT 'DROP FUNCTION ' || oid::regprocedure FROM pg_proc
    WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' AND 'e_new' = ANY (proargnames));
END
$$;
-- +goose StatementEnd
DROP FUNCTION holdfast.drop_orphans;
