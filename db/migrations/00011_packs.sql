-- +goose Up

-- Entries of objects that nobody has changed for a while are packed: 256 of them in one row, which Postgres compresses as
-- one value. See docs/adr/0006-packs-are-jsonb.md.

-- Up to which key each collection of the object may be packed: {collection: key}; NULL: nothing is. It is not part of what
-- the object is: the version does not count it, and an export does not have it.
ALTER TABLE holdfast.objects ADD COLUMN packed jsonb;

-- An entry is either here or in the table of entries, never in both, and no entry there has a key between a pack's first
-- and last one.
CREATE TABLE holdfast.packs (
  tenant_id   text COLLATE "C" NOT NULL,
  kind        text COLLATE "C" NOT NULL,
  object_id   text COLLATE "C" NOT NULL,
  collection  text COLLATE "C" NOT NULL,
  first_key   text COLLATE "C" NOT NULL,
  last_key    text COLLATE "C" NOT NULL,
  owner_id    text COLLATE "C" NOT NULL,
  entry_count integer NOT NULL,
  -- [[key, version, body], …], by key.
  entries     jsonb NOT NULL,
  CONSTRAINT packs_pkey PRIMARY KEY (tenant_id, kind, object_id, collection, first_key),
  CONSTRAINT packs_entries_check CHECK (jsonb_array_length(entries) = entry_count AND entry_count > 0
    AND entries -> 0 ->> 0 = first_key AND entries -> -1 ->> 0 = last_key)
);
-- +goose StatementBegin
DO $$
BEGIN
  ALTER TABLE holdfast.packs ALTER COLUMN entries SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  NULL; -- see 00008_lz4.sql
END
$$;
-- +goose StatementEnd

ALTER TABLE holdfast.packs ENABLE ROW LEVEL SECURITY;
ALTER TABLE holdfast.packs FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.packs TO holdfast_app;
CREATE POLICY packs_app ON holdfast.packs TO holdfast_app USING (
  tenant_id = (SELECT current_setting('app.tenant', true))
  AND ((SELECT current_setting('app.service', true)) = 'on'
    OR owner_id = ''
    OR owner_id = ANY ((SELECT current_setting('app.owners', true)::text[])::text[])));
-- As for entries: see 00004_sweep.sql.
GRANT SELECT (tenant_id, kind, object_id, entry_count), DELETE ON holdfast.packs TO holdfast_janitor;
CREATE POLICY packs_janitor ON holdfast.packs TO holdfast_janitor USING (EXISTS (
  SELECT FROM holdfast.objects o
  WHERE o.tenant_id = packs.tenant_id AND o.kind = packs.kind AND o.object_id = packs.object_id
    AND o.expire_time <= (SELECT clock_timestamp())
  OFFSET 0));
-- It also sees which objects have packs, as it sees which have events: a tenant need not be in the table of tenants.
CREATE POLICY packs_janitor_walk ON holdfast.packs FOR SELECT TO holdfast_janitor USING (true);

-- list_stored_tenants lists the tenants that have events or packs, by one probe of an index each.
-- +goose StatementBegin
CREATE FUNCTION holdfast.list_stored_tenants() RETURNS SETOF text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  t text := '';
BEGIN
  LOOP
    t := least(
      (SELECT e.tenant_id FROM holdfast.events e WHERE e.tenant_id > t ORDER BY e.tenant_id LIMIT 1),
      (SELECT p.tenant_id FROM holdfast.packs p WHERE p.tenant_id > t ORDER BY p.tenant_id LIMIT 1));
    EXIT WHEN t IS NULL;
    RETURN NEXT t;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- All entries, packed or not. For people: the server's statements read packs only where an object has some.
CREATE VIEW holdfast.all_entries WITH (security_invoker = true) AS
SELECT e.tenant_id, e.kind, e.object_id, e.collection, e.key, e.owner_id, e.version, e.body
FROM holdfast.entries e
UNION ALL
SELECT p.tenant_id, p.kind, p.object_id, p.collection, (u.e ->> 0) COLLATE "C", p.owner_id, (u.e ->> 1)::bigint, u.e -> 2
FROM holdfast.packs p CROSS JOIN LATERAL jsonb_array_elements(p.entries) AS u (e);
GRANT SELECT ON holdfast.all_entries TO holdfast_app;
CREATE OR REPLACE VIEW holdfast.messages WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, (body ->> 'seq')::bigint AS seq, owner_id, body ->> 'role' AS role,
  body ->> 'modality' AS modality, body ->> 'status' AS status, body ->> 'text' AS text,
  coalesce((body ->> 'token_count')::bigint, 0) AS token_count, (body ->> 'create_time')::timestamptz AS create_time
FROM holdfast.all_entries
WHERE kind = 'conversation' AND collection = 'messages';

-- list_packed_after and list_packed_before page through a collection, packed or not, from a key on. Packs come in the order of
-- the index, and are opened one by one until there are enough entries.
-- +goose StatementBegin
CREATE FUNCTION holdfast.list_packed_after(
  p_tenant_id text, p_kind text, p_object_id text, p_collection text, p_key text, p_page_size integer
) RETURNS TABLE (key text, body jsonb)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  first_pack text; -- that may have keys behind p_key
BEGIN
  SELECT p.first_key INTO first_pack FROM holdfast.packs p
  WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = p_collection
    AND p.first_key <= p_key
  ORDER BY p.first_key DESC
  LIMIT 1;
  first_pack := coalesce(first_pack, '');
  RETURN QUERY
  SELECT l.key, l.body FROM (
    (
      SELECT e.key, e.body FROM holdfast.entries e
      WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = p_object_id
        AND e.collection = p_collection AND e.key > p_key
      ORDER BY e.key
      LIMIT p_page_size
    )
    UNION ALL
    (
      SELECT (u.e ->> 0) COLLATE "C", u.e -> 2 FROM (
        SELECT p.entries FROM holdfast.packs p
        WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = p_collection
          AND p.first_key >= first_pack AND p.last_key > p_key
        ORDER BY p.first_key
        LIMIT p_page_size
      ) s
      CROSS JOIN LATERAL jsonb_array_elements(s.entries) AS u (e)
      WHERE (u.e ->> 0) COLLATE "C" > p_key
      LIMIT p_page_size
    )
  ) l
  ORDER BY l.key
  LIMIT p_page_size;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION holdfast.list_packed_before(
  p_tenant_id text, p_kind text, p_object_id text, p_collection text, p_key text, p_page_size integer
) RETURNS TABLE (key text, body jsonb)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
  RETURN QUERY
  SELECT l.key, l.body FROM (
    (
      SELECT e.key, e.body FROM holdfast.entries e
      WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = p_object_id
        AND e.collection = p_collection AND e.key < p_key
      ORDER BY e.key DESC
      LIMIT p_page_size
    )
    UNION ALL
    (
      SELECT (u.e ->> 0) COLLATE "C", u.e -> 2 FROM (
        SELECT p.entries, p.entry_count FROM holdfast.packs p
        WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = p_collection
          AND p.first_key < p_key
        ORDER BY p.first_key DESC
        LIMIT p_page_size
      ) s
      CROSS JOIN LATERAL (
        -- An array is in order already.
        SELECT t.e FROM jsonb_array_elements(s.entries) WITH ORDINALITY AS t (e, n) ORDER BY t.n DESC
      ) u
      WHERE (u.e ->> 0) COLLATE "C" < p_key
      LIMIT p_page_size
    )
  ) l
  ORDER BY l.key DESC
  LIMIT p_page_size;
END
$$;
-- +goose StatementEnd

-- find_packable pages through a kind's objects, newest activity first, and tells which have a collection of more than
-- p_entries entries that are not packed. The settings hold in the function only: the planner would rather read all objects.
-- +goose StatementBegin
CREATE FUNCTION holdfast.find_packable(
  p_tenant_id text, p_kind text, p_collections text[], p_entries integer, p_before_time timestamptz, p_before_id text,
  p_page_size integer
) RETURNS TABLE (object_id text, activity_time timestamptz, packable boolean)
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
  SELECT o.object_id, o.activity_time, EXISTS (
    SELECT FROM unnest(p_collections) AS c (name)
    CROSS JOIN LATERAL (
      SELECT FROM holdfast.entries e
      WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = o.object_id AND e.collection = c.name
      ORDER BY e.key
      LIMIT 1 OFFSET p_entries
    ) l)
  FROM (
    SELECT x.object_id, x.activity_time FROM holdfast.objects x
    WHERE x.tenant_id = p_tenant_id AND x.kind = p_kind AND NOT x.deleted
      AND (x.activity_time, x.object_id) < (p_before_time, p_before_id)
    ORDER BY x.activity_time DESC, x.object_id DESC
    LIMIT p_page_size
  ) o
$$;
-- +goose StatementEnd

-- note_packed brings objects.packed up to date. The caller holds the object's advisory lock, as with all that follows.
-- +goose StatementBegin
CREATE FUNCTION holdfast.note_packed(p_tenant_id text, p_kind text, p_object_id text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
  UPDATE holdfast.objects o SET packed = (
    SELECT jsonb_object_agg(l.collection, l.last_key) FROM (
      SELECT p.collection, max(p.last_key) AS last_key FROM holdfast.packs p
      WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id
      GROUP BY p.collection
    ) l)
  WHERE o.tenant_id = p_tenant_id AND o.kind = p_kind AND o.object_id = p_object_id
$$;
-- +goose StatementEnd

-- unpack_one makes a pack entries again.
-- +goose StatementBegin
CREATE FUNCTION holdfast.unpack_one(p_tenant_id text, p_kind text, p_object_id text, p_collection text, p_first_key text)
RETURNS void
LANGUAGE sql VOLATILE
AS $$
  INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
  SELECT p.tenant_id, p.kind, p.object_id, p.collection, u.e ->> 0, p.owner_id, (u.e ->> 1)::bigint, u.e -> 2
  FROM holdfast.packs p CROSS JOIN LATERAL jsonb_array_elements(p.entries) AS u (e)
  WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = p_collection
    AND p.first_key = p_first_key;
  DELETE FROM holdfast.packs p
  WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = p_collection
    AND p.first_key = p_first_key
$$;
-- +goose StatementEnd

-- make_room prepares objects that have packs for a batch of changes: p_packed is their objects.packed by "kind/id", and
-- k_ are the keys that the batch writes, or takes to be absent. A pack that has one of them between its ends is made
-- entries again; what is reborn loses its packs. Appending to a packed collection touches none.
-- +goose StatementBegin
CREATE FUNCTION holdfast.make_room(
  p_tenant_id text,
  p_packed jsonb,
  o_kind text[],
  o_id text[],
  o_reborn boolean[],
  k_object integer[],
  k_collection text[],
  k_key text[]
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  i integer;
  found_first text;
  found_last text;
  touched integer[] := '{}';
BEGIN
  FOR i IN 1 .. cardinality(o_id) LOOP
    IF o_reborn[i] AND p_packed ? (o_kind[i] || '/' || o_id[i]) THEN
      DELETE FROM holdfast.packs p WHERE p.tenant_id = p_tenant_id AND p.kind = o_kind[i] AND p.object_id = o_id[i];
      touched := touched || i;
    END IF;
  END LOOP;
  FOR j IN 1 .. coalesce(cardinality(k_object), 0) LOOP
    i := k_object[j];
    CONTINUE WHEN o_reborn[i]
      OR NOT coalesce(k_key[j] <= (p_packed -> (o_kind[i] || '/' || o_id[i]) ->> k_collection[j]) COLLATE "C", false);
    SELECT p.first_key, p.last_key INTO found_first, found_last FROM holdfast.packs p
    WHERE p.tenant_id = p_tenant_id AND p.kind = o_kind[i] AND p.object_id = o_id[i] AND p.collection = k_collection[j]
      AND p.first_key <= k_key[j]
    ORDER BY p.first_key DESC
    LIMIT 1;
    IF FOUND AND found_last >= k_key[j] COLLATE "C" THEN
      PERFORM holdfast.unpack_one(p_tenant_id, o_kind[i], o_id[i], k_collection[j], found_first);
      touched := touched || i;
    END IF;
  END LOOP;
  FOR i IN SELECT DISTINCT unnest(touched) LOOP
    PERFORM holdfast.note_packed(p_tenant_id, o_kind[i], o_id[i]);
  END LOOP;
END
$$;
-- +goose StatementEnd

-- Both of store_changes make room, the one of the release before too. It costs them nothing where no object of the batch
-- has packs.
-- +goose StatementBegin
DO $do$
DECLARE
  f regprocedure;
  def text;
  was text;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    def := pg_get_functiondef(f);
    was := def;
    def := replace(def, 'fenced bigint; -- rows', 'packed_of jsonb; -- objects.packed of those that have packs, by name
  fenced bigint; -- rows');
    ASSERT was <> def, 'the variables of store_changes are not where they were';
    was := def;
    def := replace(def, 'o.base_version > 0 AS swept', 'o.base_version > 0 AS swept,
      CASE WHEN o.packed IS NOT NULL THEN o.kind || ''/'' || o.object_id END AS name, o.packed');
    ASSERT was <> def, 'what store_changes stores is not where it was';
    was := def;
    def := replace(def, 'SELECT count(*) FILTER (WHERE NOT swept) INTO fenced FROM stored;',
      'SELECT count(*) FILTER (WHERE NOT swept), jsonb_object_agg(name, packed) FILTER (WHERE packed IS NOT NULL)
  INTO fenced, packed_of FROM stored;');
    ASSERT was <> def, 'the count of store_changes is not where it was';
    was := def;
    def := replace(def, 'IF true = ANY (o_reborn) OR', 'IF packed_of IS NOT NULL THEN
    PERFORM holdfast.make_room(p_tenant_id, packed_of, o_kind, o_id, o_reborn, a_object || e_object || d_object,
      a_collection || e_collection || d_collection, a_key || e_key || d_key);
  END IF;

  IF true = ANY (o_reborn) OR');
    ASSERT was <> def, 'what store_changes does first is not where it was';
    EXECUTE def;
  END LOOP;
END
$do$;
-- +goose StatementEnd

-- pack_object packs entries of one object, in packs of p_size entries or a little over p_bytes bytes, and leaves the newest
-- p_keep of each collection and what does not fill a pack. It does nothing where the object has changed within
-- p_idle_seconds, where it is not to be kept for as long again, or where somebody is at it; it waits for nobody, and stops
-- after about p_most packs. The object's advisory lock keeps writers away, and its row a sweep. It answers how many
-- packs it made, of how many entries, and their bytes on disk before and after, without indexes.
-- +goose StatementBegin
CREATE FUNCTION holdfast.pack_object(
  p_tenant_id text,
  p_lock bigint,
  p_kind text,
  p_object_id text,
  p_collections text[],
  p_idle_seconds double precision,
  p_keep integer,
  p_size integer,
  p_bytes integer,
  p_most integer,
  OUT packs bigint,
  OUT entries bigint,
  OUT bytes_before bigint,
  OUT bytes_after bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  idle CONSTANT interval := make_interval(secs => p_idle_seconds);
  c text;
  done text; -- what is up to this key is done with
  upto text; -- the last key that may be packed
  next_first text; -- of the pack behind done, in front of which a pack must end
  next_last text;
  packing record;
  n bigint;
BEGIN
  packs := 0; entries := 0; bytes_before := 0; bytes_after := 0;
  IF NOT pg_try_advisory_xact_lock(p_lock) THEN
    RETURN;
  END IF;
  PERFORM FROM holdfast.objects o
  WHERE o.tenant_id = p_tenant_id AND o.kind = p_kind AND o.object_id = p_object_id AND NOT o.deleted
    AND o.update_time <= clock_timestamp() - idle AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp() + idle)
  FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  FOREACH c IN ARRAY p_collections LOOP
    SELECT e.key INTO upto FROM holdfast.entries e
    WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = p_object_id AND e.collection = c
    ORDER BY e.key DESC
    OFFSET p_keep LIMIT 1;
    CONTINUE WHEN NOT FOUND;
    done := '';
    WHILE packs < p_most LOOP
      SELECT p.first_key, p.last_key INTO next_first, next_last FROM holdfast.packs p
      WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = c AND p.first_key > done
      ORDER BY p.first_key
      LIMIT 1;
      SELECT count(*) AS entry_count, min(s.key) AS first_key, max(s.key) AS last_key, min(s.owner_id) AS owner_id,
        coalesce(sum(s.body_bytes), 0) AS body_bytes, coalesce(sum(s.row_bytes), 0) AS row_bytes,
        jsonb_agg(jsonb_build_array(s.key, s.version, s.body) ORDER BY s.key) AS body
      INTO packing
      FROM (
        SELECT w.*, sum(w.body_bytes) OVER (ORDER BY w.key) - w.body_bytes AS before FROM (
          SELECT e.key, e.version, e.body, e.owner_id, pg_column_size(e.*) AS row_bytes, octet_length(e.body::text) AS body_bytes
          FROM holdfast.entries e
          WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = p_object_id AND e.collection = c
            AND e.key > done AND e.key <= upto AND (next_first IS NULL OR e.key < next_first)
          ORDER BY e.key
          LIMIT p_size
        ) w
      ) s
      WHERE s.before < p_bytes;
      IF packing.entry_count < p_size AND packing.body_bytes < p_bytes THEN
        EXIT WHEN next_first IS NULL OR next_first > upto COLLATE "C";
        done := next_last;
        CONTINUE;
      END IF;
      INSERT INTO holdfast.packs AS p (tenant_id, kind, object_id, collection, first_key, last_key, owner_id, entry_count, entries)
      VALUES (p_tenant_id, p_kind, p_object_id, c, packing.first_key, packing.last_key, packing.owner_id, packing.entry_count, packing.body);
      DELETE FROM holdfast.entries e
      WHERE e.tenant_id = p_tenant_id AND e.kind = p_kind AND e.object_id = p_object_id AND e.collection = c
        AND e.key >= packing.first_key AND e.key <= packing.last_key;
      GET DIAGNOSTICS n = ROW_COUNT;
      IF n <> packing.entry_count THEN
        RAISE EXCEPTION '% entries were packed, and % are gone', packing.entry_count, n;
      END IF;
      packs := packs + 1;
      entries := entries + n;
      bytes_before := bytes_before + packing.row_bytes;
      bytes_after := bytes_after + (SELECT pg_column_size(p.*) FROM holdfast.packs p
        WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id AND p.collection = c
          AND p.first_key = packing.first_key);
      done := packing.last_key;
    END LOOP;
  END LOOP;
  IF packs > 0 THEN
    PERFORM holdfast.note_packed(p_tenant_id, p_kind, p_object_id);
  END IF;
END
$$;
-- +goose StatementEnd

-- unpack_object makes up to p_most packs of an object entries again, those that hold p_mention, or any where it is empty. It
-- answers how many they were.
-- +goose StatementBegin
CREATE FUNCTION holdfast.unpack_object(
  p_tenant_id text,
  p_lock bigint,
  p_kind text,
  p_object_id text,
  p_mention text,
  p_most integer
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  u record;
  n bigint := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock);
  FOR u IN
    SELECT p.collection, p.first_key FROM holdfast.packs p
    WHERE p.tenant_id = p_tenant_id AND p.kind = p_kind AND p.object_id = p_object_id
      AND (p_mention = '' OR strpos(p.entries::text, p_mention) > 0)
    LIMIT p_most
  LOOP
    PERFORM holdfast.unpack_one(p_tenant_id, p_kind, p_object_id, u.collection, u.first_key);
    n := n + 1;
  END LOOP;
  IF n > 0 THEN
    PERFORM holdfast.note_packed(p_tenant_id, p_kind, p_object_id);
  END IF;
  RETURN n;
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION holdfast.list_packed_after, holdfast.list_packed_before, holdfast.find_packable,
  holdfast.note_packed, holdfast.unpack_one, holdfast.make_room, holdfast.pack_object, holdfast.unpack_object,
  holdfast.list_stored_tenants FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.list_stored_tenants TO holdfast_janitor;
GRANT EXECUTE ON FUNCTION holdfast.list_packed_after, holdfast.list_packed_before, holdfast.find_packable,
  holdfast.note_packed, holdfast.unpack_one, holdfast.make_room, holdfast.pack_object, holdfast.unpack_object TO holdfast_app;

-- A sweep deletes packs as well, and counts what is in them as entries.
-- +goose StatementBegin
DO $do$
DECLARE
  was text := pg_get_functiondef('holdfast.sweep_expired'::regproc);
  now text := replace(was, 'DELETE FROM holdfast.events x', 'WITH gone AS (
      DELETE FROM holdfast.packs x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id
      RETURNING x.entry_count
    )
    SELECT coalesce(sum(gone.entry_count), 0) INTO n FROM gone;
    entries := entries + n;
    DELETE FROM holdfast.events x');
BEGIN
  ASSERT was <> now, 'sweep_expired is not as it was';
  EXECUTE now;
END
$do$;
-- +goose StatementEnd

-- +goose Down
-- What is packed becomes entries again; without FORCE the owner sees all rows.
ALTER TABLE holdfast.packs NO FORCE ROW LEVEL SECURITY;
ALTER TABLE holdfast.entries NO FORCE ROW LEVEL SECURITY;
INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
SELECT p.tenant_id, p.kind, p.object_id, p.collection, u.e ->> 0, p.owner_id, (u.e ->> 1)::bigint, u.e -> 2
FROM holdfast.packs p CROSS JOIN LATERAL jsonb_array_elements(p.entries) AS u (e);
ALTER TABLE holdfast.entries FORCE ROW LEVEL SECURITY;
-- +goose StatementBegin
DO $do$
DECLARE
  f regprocedure;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    EXECUTE replace(replace(replace(replace(pg_get_functiondef(f),
      'packed_of jsonb; -- objects.packed of those that have packs, by name
  ', ''), ',
      CASE WHEN o.packed IS NOT NULL THEN o.kind || ''/'' || o.object_id END AS name, o.packed', ''),
      'SELECT count(*) FILTER (WHERE NOT swept), jsonb_object_agg(name, packed) FILTER (WHERE packed IS NOT NULL)
  INTO fenced, packed_of FROM stored;', 'SELECT count(*) FILTER (WHERE NOT swept) INTO fenced FROM stored;'),
      'IF packed_of IS NOT NULL THEN
    PERFORM holdfast.make_room(p_tenant_id, packed_of, o_kind, o_id, o_reborn, a_object || e_object || d_object,
      a_collection || e_collection || d_collection, a_key || e_key || d_key);
  END IF;

  ', '');
  END LOOP;
  EXECUTE replace(pg_get_functiondef('holdfast.sweep_expired'::regproc), 'WITH gone AS (
      DELETE FROM holdfast.packs x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id
      RETURNING x.entry_count
    )
    SELECT coalesce(sum(gone.entry_count), 0) INTO n FROM gone;
    entries := entries + n;
    ', '');
END
$do$;
-- +goose StatementEnd
DROP FUNCTION holdfast.list_stored_tenants;
DROP FUNCTION holdfast.unpack_object;
DROP FUNCTION holdfast.pack_object;
DROP FUNCTION holdfast.make_room;
DROP FUNCTION holdfast.unpack_one;
DROP FUNCTION holdfast.note_packed;
DROP FUNCTION holdfast.find_packable;
DROP FUNCTION holdfast.list_packed_before;
DROP FUNCTION holdfast.list_packed_after;
CREATE OR REPLACE VIEW holdfast.messages WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, (body ->> 'seq')::bigint AS seq, owner_id, body ->> 'role' AS role,
  body ->> 'modality' AS modality, body ->> 'status' AS status, body ->> 'text' AS text,
  coalesce((body ->> 'token_count')::bigint, 0) AS token_count, (body ->> 'create_time')::timestamptz AS create_time
FROM holdfast.entries
WHERE kind = 'conversation' AND collection = 'messages';
DROP VIEW holdfast.all_entries;
DROP TABLE holdfast.packs;
ALTER TABLE holdfast.objects DROP COLUMN packed;
