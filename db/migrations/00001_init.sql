-- +goose Up

-- Roles belong to the cluster, not the database: another database of it, or a migration running there at this
-- moment, may have made them. None of them can log in; the server's login is granted them and enters one a transaction.
-- +goose StatementBegin
DO $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['holdfast_app', 'holdfast_auth', 'holdfast_operator', 'holdfast_janitor'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT NOBYPASSRLS', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
  END LOOP;
END
$$;
-- +goose StatementEnd

CREATE SCHEMA holdfast;
GRANT USAGE ON SCHEMA holdfast TO holdfast_app, holdfast_auth, holdfast_operator, holdfast_janitor;

CREATE TABLE holdfast.tenants (
  tenant_id   text COLLATE "C" NOT NULL,
  owner_id    text COLLATE "C" NOT NULL DEFAULT '',
  title       text NOT NULL DEFAULT '',
  create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
  CONSTRAINT tenants_tenant_id_check CHECK (tenant_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  CONSTRAINT tenants_owner_id_check CHECK (owner_id = '')
);

CREATE TABLE holdfast.api_keys (
  tenant_id   text COLLATE "C" NOT NULL,
  key_id      text COLLATE "C" NOT NULL,
  -- The user that a key of role 'user' acts as; empty for a service key.
  owner_id    text COLLATE "C" NOT NULL,
  role        text NOT NULL,
  secret_hash bytea NOT NULL,
  description text NOT NULL DEFAULT '',
  create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  revoke_time timestamptz,
  CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, key_id),
  CONSTRAINT api_keys_role_check CHECK (role = 'service' AND owner_id = '' OR role = 'user' AND owner_id <> ''),
  CONSTRAINT api_keys_secret_hash_check CHECK (octet_length(secret_hash) = 32)
);
-- A credential names its key before its tenant is known. Not unique: uniqueness never crosses tenants.
CREATE INDEX api_keys_key_id_idx ON holdfast.api_keys (key_id);

-- fillfactor 80 and no index on what an ordinary write changes keep updates HOT: activity_time and expire_time move
-- in coarse steps.
CREATE TABLE holdfast.objects (
  tenant_id      text COLLATE "C" NOT NULL,
  kind           text COLLATE "C" NOT NULL,
  object_id      text COLLATE "C" NOT NULL,
  owner_id       text COLLATE "C" NOT NULL,
  -- The version that the last batch of changes built on; store_changes compares it with the one that is stored.
  base_version   bigint NOT NULL,
  version        bigint NOT NULL,
  schema_version integer NOT NULL,
  -- NULL: deleted; the row stays until it expires, so that the version goes on counting and a retry gets its reply.
  state          jsonb,
  deleted        boolean NOT NULL DEFAULT false,
  create_time    timestamptz NOT NULL,
  update_time    timestamptz NOT NULL,
  activity_time  timestamptz NOT NULL,
  expire_time    timestamptz,
  CONSTRAINT objects_pkey PRIMARY KEY (tenant_id, kind, object_id),
  -- One constraint, because Postgres parses each of them anew for each statement: four took a twelfth of a write.
  CONSTRAINT objects_state_check CHECK (CASE WHEN deleted THEN state IS NULL ELSE jsonb_typeof(state) = 'object' END IS TRUE)
) WITH (fillfactor = 80);
-- On a table without statistics the planner finds an index that begins with (tenant_id, kind) as cheap as the primary
-- key, took this one for lookups by id, and read the tenant's whole kind. A partial index is out of the question for a
-- query that does not repeat its condition, which only lists do. (Were the condition on state, no update would be HOT.)
CREATE INDEX objects_activity_idx ON holdfast.objects (tenant_id, kind, activity_time DESC, object_id DESC)
  WHERE NOT deleted;
CREATE INDEX objects_expire_idx ON holdfast.objects (tenant_id, expire_time) WHERE expire_time IS NOT NULL;

-- What List can filter by, one row a term. A GIN index over an array column would be smaller, but row-level security
-- keeps it from being used: only leakproof operators pass a policy, and containment is none.
CREATE TABLE holdfast.terms (
  tenant_id     text COLLATE "C" NOT NULL,
  kind          text COLLATE "C" NOT NULL,
  object_id     text COLLATE "C" NOT NULL,
  -- "<tenant_id>/<kind>/<term>", so that the index below cannot be taken for lookups by object; see objects_activity_idx.
  term          text COLLATE "C" NOT NULL,
  owner_id      text COLLATE "C" NOT NULL,
  activity_time timestamptz NOT NULL,
  CONSTRAINT terms_pkey PRIMARY KEY (tenant_id, kind, object_id, term)
);
-- tenant_id is last, and there although term begins with it, because row-level security asks for it: without it a table
-- that was never analysed was read by the primary key, all of the tenant's terms, and sorted.
CREATE INDEX terms_activity_idx ON holdfast.terms (term, activity_time DESC, object_id DESC, tenant_id);

CREATE TABLE holdfast.entries (
  tenant_id  text COLLATE "C" NOT NULL,
  kind       text COLLATE "C" NOT NULL,
  object_id  text COLLATE "C" NOT NULL,
  collection text COLLATE "C" NOT NULL,
  key        text COLLATE "C" NOT NULL,
  owner_id   text COLLATE "C" NOT NULL,
  -- The object's version that wrote it last.
  version    bigint NOT NULL,
  body       jsonb NOT NULL,
  CONSTRAINT entries_pkey PRIMARY KEY (tenant_id, kind, object_id, collection, key),
  CONSTRAINT entries_body_check CHECK (jsonb_typeof(body) = 'object')
);

CREATE TABLE holdfast.events (
  tenant_id    text COLLATE "C" NOT NULL,
  kind         text COLLATE "C" NOT NULL,
  object_id    text COLLATE "C" NOT NULL,
  version      bigint NOT NULL,
  owner_id     text COLLATE "C" NOT NULL,
  event_type   text NOT NULL,
  -- The user who made the change; empty: a service on its own behalf.
  actor        text NOT NULL,
  event_time   timestamptz NOT NULL,
  request_id   text COLLATE "C",
  -- Half of the SHA-256 of kind, object and request id. By it the lookup names neither kind nor object, so that the
  -- planner cannot take the primary key for it and read the object's whole journal.
  request_key  bytea,
  -- SHA-256 of the request, so that a reused id is told from a retry.
  request_hash bytea,
  -- The first reply, as it was sent.
  reply        bytea,
  -- What the change replaced: {"state": {field: old}, "entries": [[collection, key, old]]}; null: was not there.
  undo         jsonb NOT NULL,
  CONSTRAINT events_pkey PRIMARY KEY (tenant_id, kind, object_id, version),
  CONSTRAINT events_undo_check CHECK (jsonb_typeof(undo) = 'object')
);
CREATE UNIQUE INDEX events_request_key ON holdfast.events (tenant_id, request_key) WHERE request_key IS NOT NULL;

-- Row-level security. The settings are wrapped in SELECT so that they are read once a statement, not once a row.
-- +goose StatementBegin
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['tenants', 'api_keys', 'objects', 'terms', 'entries', 'events'] LOOP
    EXECUTE format('ALTER TABLE holdfast.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE holdfast.%I FORCE ROW LEVEL SECURITY', t);
  END LOOP;
  FOREACH t IN ARRAY ARRAY['objects', 'terms', 'entries', 'events'] LOOP
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.%I TO holdfast_app', t);
    EXECUTE format($policy$
      CREATE POLICY %I ON holdfast.%I TO holdfast_app USING (
        tenant_id = (SELECT current_setting('app.tenant', true))
        AND ((SELECT current_setting('app.service', true)) = 'on'
          OR owner_id = ''
          OR owner_id = ANY ((SELECT current_setting('app.owners', true)::text[])::text[])))
      $policy$, t || '_app', t);
  END LOOP;
END
$$;
-- +goose StatementEnd

-- Who asks is not known until the key is found: the authenticator sees the one key that the credential names.
GRANT SELECT ON holdfast.api_keys TO holdfast_auth;
CREATE POLICY api_keys_auth ON holdfast.api_keys FOR SELECT TO holdfast_auth
  USING (key_id = (SELECT current_setting('app.key_id', true)));

-- The operator's commands make tenants and keys, and see no object.
GRANT SELECT, INSERT, UPDATE ON holdfast.tenants, holdfast.api_keys TO holdfast_operator;
CREATE POLICY tenants_operator ON holdfast.tenants TO holdfast_operator USING (true);
CREATE POLICY api_keys_operator ON holdfast.api_keys TO holdfast_operator USING (true);

-- The janitor sees only what has expired.
GRANT SELECT, DELETE ON holdfast.objects TO holdfast_janitor;
CREATE POLICY objects_janitor ON holdfast.objects TO holdfast_janitor
  USING (expire_time <= (SELECT clock_timestamp()));

-- store_changes is the write path's one statement per batch: it locks the objects, then stores them, their terms,
-- entries and events, or raises HF001 where any of them is not at the version that the caller computed from. Every
-- statement of a volatile function takes its own snapshot, so what follows the lock sees what the lock waited for;
-- lock and write as one statement lost updates when we measured it.
-- Rows of the o_ arrays are objects; the other arrays name theirs by its index in them. An empty string is no state
-- or no request id, and the year 1 is no expiry; an array may be NULL for none.
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
      deleted, create_time, update_time, activity_time, expire_time)
    SELECT p_tenant_id, o_kind[i], o_id[i], o_owner_id[i], o_expected[i], o_version[i], o_schema_version[i],
      nullif(o_state[i], '')::jsonb, o_state[i] = '', o_create_time[i], o_update_time[i], o_activity_time[i],
      nullif(o_expire_time[i], never)
    FROM generate_series(1, cardinality(o_id)) AS i
    ON CONFLICT (tenant_id, kind, object_id) DO UPDATE SET owner_id = EXCLUDED.owner_id,
      base_version = EXCLUDED.base_version, version = EXCLUDED.version, schema_version = EXCLUDED.schema_version,
      state = EXCLUDED.state, deleted = EXCLUDED.deleted, create_time = EXCLUDED.create_time,
      update_time = EXCLUDED.update_time, activity_time = EXCLUDED.activity_time, expire_time = EXCLUDED.expire_time
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
REVOKE ALL ON FUNCTION holdfast.store_changes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.store_changes TO holdfast_app;

-- Typed columns for analysts; security_invoker keeps the caller's row-level security.
CREATE VIEW holdfast.conversations WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, owner_id, version, state ->> 'title' AS title,
  state ->> 'project_id' AS project_id, state -> 'labels' AS labels,
  coalesce((state ->> 'last_seq')::bigint, 0) AS message_count,
  coalesce((state ->> 'token_count')::bigint, 0) AS token_count,
  create_time, update_time, expire_time
FROM holdfast.objects
WHERE kind = 'conversation' AND state IS NOT NULL;
CREATE VIEW holdfast.messages WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, (body ->> 'seq')::bigint AS seq, owner_id, body ->> 'role' AS role,
  body ->> 'modality' AS modality, body ->> 'status' AS status, body ->> 'text' AS text,
  coalesce((body ->> 'token_count')::bigint, 0) AS token_count, (body ->> 'create_time')::timestamptz AS create_time
FROM holdfast.entries
WHERE kind = 'conversation' AND collection = 'messages';
GRANT SELECT ON holdfast.conversations, holdfast.messages TO holdfast_app;

-- +goose Down
DROP SCHEMA holdfast CASCADE;
-- The roles stay: other databases of the cluster may use them.
