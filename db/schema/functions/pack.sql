-- list_packed_after and list_packed_before page through a collection, packed or not, from a key on. Packs come in the order of
-- the index, and are opened one by one until there are enough entries.
CREATE OR REPLACE FUNCTION holdfast.list_packed_after(
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

CREATE OR REPLACE FUNCTION holdfast.list_packed_before(
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

-- find_packable pages through a kind's objects, newest activity first, and tells which have a collection of more than
-- p_entries entries that are not packed. The settings hold in the function only: the planner would rather read all objects.
CREATE OR REPLACE FUNCTION holdfast.find_packable(
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

-- note_packed brings objects.packed up to date. The caller holds the object's advisory lock, as with all that follows.
CREATE OR REPLACE FUNCTION holdfast.note_packed(p_tenant_id text, p_kind text, p_object_id text) RETURNS void
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

-- unpack_one makes a pack entries again.
CREATE OR REPLACE FUNCTION holdfast.unpack_one(p_tenant_id text, p_kind text, p_object_id text, p_collection text, p_first_key text)
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

-- make_room prepares objects that have packs for a batch of changes. p_packed is their objects.packed by "kind/id", p_objects are
-- rows of store_changes, and p_keys the entries that the batch writes or takes to be absent. A pack with one of these keys
-- between its ends is made entries again; an object that is reborn loses its packs. Appending to a packed collection touches
-- no pack.
CREATE OR REPLACE FUNCTION holdfast.make_room(p_tenant_id text, p_packed jsonb, p_objects jsonb, p_keys jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  r record;
  name text;
  found_first text;
  found_last text;
BEGIN
  FOR r IN SELECT * FROM jsonb_to_recordset(p_objects) AS n (kind text, object_id text, reborn boolean) WHERE n.reborn LOOP
    name := r.kind || '/' || r.object_id;
    CONTINUE WHEN NOT p_packed ? name;
    DELETE FROM holdfast.packs p WHERE p.tenant_id = p_tenant_id AND p.kind = r.kind AND p.object_id = r.object_id;
    PERFORM holdfast.note_packed(p_tenant_id, r.kind, r.object_id);
    p_packed := p_packed - name;
  END LOOP;
  FOR r IN SELECT * FROM jsonb_to_recordset(p_keys) AS n (kind text, object_id text, collection text, key text) LOOP
    CONTINUE WHEN NOT coalesce(
      r.key <= (p_packed -> (r.kind || '/' || r.object_id) ->> r.collection) COLLATE "C", false);
    SELECT p.first_key, p.last_key INTO found_first, found_last FROM holdfast.packs p
    WHERE p.tenant_id = p_tenant_id AND p.kind = r.kind AND p.object_id = r.object_id AND p.collection = r.collection
      AND p.first_key <= r.key
    ORDER BY p.first_key DESC
    LIMIT 1;
    IF FOUND AND found_last >= r.key COLLATE "C" THEN
      PERFORM holdfast.unpack_one(p_tenant_id, r.kind, r.object_id, r.collection, found_first);
      PERFORM holdfast.note_packed(p_tenant_id, r.kind, r.object_id);
    END IF;
  END LOOP;
END
$$;

-- pack_object packs entries of one object, in packs of p_size entries or a little over p_bytes bytes, and leaves the newest
-- p_keep of each collection and what does not fill a pack. It does nothing where the object has changed within
-- p_idle_seconds, where it is not to be kept for as long again, or where somebody is at it; it waits for nobody, and stops
-- after about p_most packs. The object's advisory lock keeps writers away, and its row a sweep. It answers how many
-- packs it made, of how many entries, and their bytes on disk before and after, without indexes.
CREATE OR REPLACE FUNCTION holdfast.pack_object(
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

-- unpack_object makes up to p_most packs of an object entries again, those that hold p_mention, or any where it is empty. It
-- answers how many they were.
CREATE OR REPLACE FUNCTION holdfast.unpack_object(
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

REVOKE ALL ON FUNCTION holdfast.list_packed_after, holdfast.list_packed_before, holdfast.find_packable, holdfast.note_packed, holdfast.unpack_one, holdfast.make_room, holdfast.pack_object, holdfast.unpack_object FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.list_packed_after, holdfast.list_packed_before, holdfast.find_packable, holdfast.note_packed, holdfast.unpack_one, holdfast.make_room, holdfast.pack_object, holdfast.unpack_object TO holdfast_app;
