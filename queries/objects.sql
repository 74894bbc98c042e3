-- Pages end in bytes as well as in rows: they have the row with which they pass most_bytes and none behind it, so that one
-- call reads no more than it answers, and the caller sees that there is more.

-- The array statements below reach their tables by LATERAL … OFFSET 0: one primary-key probe a row whatever the
-- statistics say. `id = ANY($1)` on a table that was never analysed read the tenant's whole kind.

-- LockObjects takes the advisory locks of a batch, which must be in ascending order, and answers the clock after the
-- last: waiting does not make it stale. A statement of its own, so that what follows sees what it waited for.
-- name: LockObjects :one
SELECT clock_timestamp()::timestamptz AS now FROM (
  SELECT count(pg_advisory_xact_lock(k.lock)) FROM (SELECT unnest(@locks::bigint[]) AS lock) k
) locked;

-- ViewObjects reads objects and the newest entries of one collection of each, as one snapshot. The state is
-- empty where the object is still at the version that the caller has, and no entries are read then. Of an object that
-- is asleep none are there to be read. Entries end with the one that passes most_bytes.
-- name: ViewObjects :many
SELECT k.ord::integer AS ord, o.owner_id, o.version, o.schema_version, o.create_time, o.update_time, o.activity_time,
  o.expire_time, o.deleted,
  coalesce(CASE WHEN o.version <> k.known THEN o.state END::text, '')::text AS state,
  coalesce(CASE WHEN o.version <> k.known THEN o.timers END::text, '')::text AS timers,
  o.asleep, e.keys::text[] AS keys, e.bodies::text[] AS bodies
FROM (
  SELECT unnest(@ords::integer[]) AS ord, unnest(@kinds::text[]) AS kind, unnest(@ids::text[]) AS object_id,
    unnest(@known::bigint[]) AS known, unnest(@collections::text[]) AS collection, unnest(@limits::integer[]) AS lim
) k
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.objects x
  WHERE x.tenant_id = @tenant_id::text AND x.kind = k.kind AND x.object_id = k.object_id
  OFFSET 0
) o
CROSS JOIN LATERAL (
  SELECT array_agg(n.key) AS keys, array_agg(n.body) AS bodies FROM (
    SELECT l.key, l.body, sum(octet_length(l.body)) OVER (ORDER BY l.key DESC ROWS UNBOUNDED PRECEDING) - octet_length(l.body) AS bytes
    FROM (
      SELECT x.key, x.body::text AS body FROM holdfast.entries x
      WHERE x.tenant_id = @tenant_id AND x.kind = k.kind AND x.object_id = k.object_id
        AND x.collection = k.collection AND o.version <> k.known
      ORDER BY x.key DESC
      LIMIT k.lim
    ) l
  ) n
  WHERE n.bytes <= @most_bytes::bigint
) e;

-- LoadEntries reads entries by their keys, each for a reader: a user, who reads no other owner's entries, or a service, which is
-- empty and reads all.
-- name: LoadEntries :many
SELECT k.ord::integer AS ord, e.collection, e.key, e.body::text AS body, e.owned, e.owner_id
FROM (
  SELECT unnest(@ords::integer[]) AS ord, unnest(@kinds::text[]) AS kind, unnest(@ids::text[]) AS object_id,
    unnest(@collections::text[]) AS collection, unnest(@keys::text[]) AS key, unnest(@readers::text[]) AS reader
) k
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.entries x
  WHERE x.tenant_id = @tenant_id::text AND x.kind = k.kind AND x.object_id = k.object_id
    AND x.collection = k.collection AND x.key = k.key AND (NOT x.owned OR k.reader IN ('', x.owner_id))
  OFFSET 0
) e;

-- MeasureEntries is LoadEntries for the lengths of the bodies.
-- name: MeasureEntries :many
SELECT k.ord::integer AS ord, k.n::integer AS n, octet_length(e.body::text)::integer AS bytes
FROM (
  SELECT unnest(@ords::integer[]) AS ord, unnest(@numbers::integer[]) AS n, unnest(@kinds::text[]) AS kind, unnest(@ids::text[]) AS object_id,
    unnest(@collections::text[]) AS collection, unnest(@keys::text[]) AS key, unnest(@readers::text[]) AS reader
) k
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.entries x
  WHERE x.tenant_id = @tenant_id::text AND x.kind = k.kind AND x.object_id = k.object_id
    AND x.collection = k.collection AND x.key = k.key AND (NOT x.owned OR k.reader IN ('', x.owner_id))
  OFFSET 0
) e;

-- FindOldest reads the first of the newest keys of a collection, and how many there are.
-- name: FindOldest :one
SELECT coalesce(min(l.key), '')::text AS key, count(*)::bigint AS keys
FROM (
  SELECT x.key FROM holdfast.entries x
  WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = @object_id::text AND x.collection = @collection::text
  ORDER BY x.key DESC
  LIMIT @page_size::integer
) l;

-- LoadReplies reads the events of requests, by their keys.
-- name: LoadReplies :many
SELECT k.ord::integer AS ord, e.version, e.request_id::text AS request_id, e.request_hash, e.reply
FROM (SELECT unnest(@ords::integer[]) AS ord, unnest(@request_keys::bytea[]) AS request_key) k
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.events x
  WHERE x.tenant_id = @tenant_id::text AND x.request_key = k.request_key
  OFFSET 0
) e;

-- StoreChanges stores a batch; see the function.
-- name: StoreChanges :one
SELECT holdfast.store_changes(@tenant_id::text, @locks::bigint[], @objects::jsonb, @terms::jsonb, @added::jsonb, @replaced::jsonb,
  @absent::jsonb, @timers::jsonb, @events::jsonb)::timestamptz AS now;

-- ListObjects pages through the live objects of a kind, newest activity first.
-- name: ListObjects :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.activity_time DESC, n.object_id DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT o.object_id, o.owner_id, o.version, o.schema_version, o.state::text AS state, o.create_time, o.update_time,
      o.activity_time, o.expire_time, coalesce(o.timers::text, '')::text AS timers
    FROM holdfast.objects o
    WHERE o.tenant_id = @tenant_id::text AND o.kind = @kind::text AND NOT o.deleted
      AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
      AND (o.activity_time, o.object_id) < (@before_time::timestamptz, @before_id::text)
    ORDER BY o.activity_time DESC, o.object_id DESC
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.activity_time DESC, l.object_id DESC;

-- ListObjectsByTerms is ListObjects for the objects that have all of some terms. It walks the first term's index.
-- name: ListObjectsByTerms :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.activity_time DESC, n.object_id DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT t.object_id, o.owner_id, o.version, o.schema_version, o.state::text AS state, o.create_time, o.update_time,
      t.activity_time, o.expire_time, coalesce(o.timers::text, '')::text AS timers
    FROM holdfast.terms t
    CROSS JOIN LATERAL (
      SELECT * FROM holdfast.objects x
      WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = t.object_id
      OFFSET 0
    ) o
    WHERE t.tenant_id = @tenant_id AND t.term = @term::text AND NOT o.deleted
      AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
      AND (t.activity_time, t.object_id) < (@before_time::timestamptz, @before_id::text)
      AND NOT EXISTS (
        SELECT FROM (SELECT unnest(@other_terms::text[]) AS term) k
        WHERE NOT EXISTS (
          SELECT FROM (
            SELECT x.term FROM holdfast.terms x
            WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = t.object_id
            OFFSET 0
          ) x WHERE x.term = k.term))
    ORDER BY t.activity_time DESC, t.object_id DESC
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.activity_time DESC, l.object_id DESC;

-- ListObjectsByAnyTerm is ListObjects for the objects that have any of some terms. It walks each term's index, so an object with
-- none of them costs nothing.
-- name: ListObjectsByAnyTerm :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.activity_time DESC, n.object_id DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT n.object_id, n.owner_id, n.version, n.schema_version, n.state::text AS state, n.create_time, n.update_time,
      n.activity_time, n.expire_time, coalesce(n.timers::text, '')::text AS timers
    FROM (
      SELECT DISTINCT ON (l.activity_time, l.object_id) l.*
      FROM (SELECT unnest(@terms::text[]) AS term) f
      CROSS JOIN LATERAL (
        SELECT o.* FROM holdfast.terms t
        CROSS JOIN LATERAL (
          SELECT * FROM holdfast.objects x
          WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = t.object_id
          OFFSET 0
        ) o
        WHERE t.tenant_id = @tenant_id AND t.term = f.term AND NOT o.deleted
          AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
          AND (t.activity_time, t.object_id) < (@before_time::timestamptz, @before_id::text)
        ORDER BY t.activity_time DESC, t.object_id DESC
        LIMIT @page_size::integer
      ) l
      ORDER BY l.activity_time DESC, l.object_id DESC
      LIMIT @page_size
    ) n
    ORDER BY n.activity_time DESC, n.object_id DESC
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.activity_time DESC, l.object_id DESC;

-- ListEntriesAfter pages through one collection of an object, in the order of the keys. To know how long a body is costs as much as
-- to read it, so read counts rows in growing steps, and stops where the page ends.
-- name: ListEntriesAfter :many
WITH RECURSIVE read AS (
  SELECT 0 AS rows, @after_key::text AS last, 0::bigint AS bytes, 8 AS more, @page_size::integer AS most
  UNION ALL
  SELECT read.rows + c.rows, c.last COLLATE "default", read.bytes + c.bytes, 2 * read.more, read.most
  FROM read
  CROSS JOIN LATERAL (
    SELECT count(*)::integer AS rows, max(x.key) AS last, sum(octet_length(x.body))::bigint AS bytes
    FROM (
      SELECT e.key, e.body::text AS body
      FROM holdfast.entries e
      WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
        AND e.collection = @collection::text AND e.key > read.last
      ORDER BY e.key
      LIMIT least(read.more, read.most - read.rows)
    ) x
  ) c
  WHERE c.rows > 0 AND read.rows < read.most AND read.bytes <= @most_bytes::bigint
)
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ORDER BY n.key ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT e.key, e.body::text AS body
    FROM holdfast.entries e
    WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
      AND e.collection = @collection::text AND e.key > @after_key::text
    ORDER BY e.key
    LIMIT (SELECT max(read.rows) FROM read)
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.key;

-- ListOwnEntriesAfter is ListEntriesAfter for a collection of owned entries and one of their owners, whose index it walks.
-- name: ListOwnEntriesAfter :many
WITH RECURSIVE read AS (
  SELECT 0 AS rows, @after_key::text AS last, 0::bigint AS bytes, 8 AS more, @page_size::integer AS most
  UNION ALL
  SELECT read.rows + c.rows, c.last COLLATE "default", read.bytes + c.bytes, 2 * read.more, read.most
  FROM read
  CROSS JOIN LATERAL (
    SELECT count(*)::integer AS rows, max(x.key) AS last, sum(octet_length(x.body))::bigint AS bytes
    FROM (
      SELECT e.key, e.body::text AS body
      FROM holdfast.entries e
      WHERE e.tenant_id = @tenant_id::text AND e.owned AND e.owner_id = @owner_id::text
        AND e.kind = @kind::text AND e.object_id = @object_id::text
        AND e.collection = @collection::text AND e.key > read.last
      ORDER BY e.key
      LIMIT least(read.more, read.most - read.rows)
    ) x
  ) c
  WHERE c.rows > 0 AND read.rows < read.most AND read.bytes <= @most_bytes::bigint
)
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ORDER BY n.key ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT e.key, e.body::text AS body
    FROM holdfast.entries e
    WHERE e.tenant_id = @tenant_id::text AND e.owned AND e.owner_id = @owner_id::text
        AND e.kind = @kind::text AND e.object_id = @object_id::text
      AND e.collection = @collection::text AND e.key > @after_key::text
    ORDER BY e.key
    LIMIT (SELECT max(read.rows) FROM read)
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.key;

-- ListEntriesBefore pages through one collection of an object, backwards.
-- name: ListEntriesBefore :many
WITH RECURSIVE read AS (
  SELECT 0 AS rows, @before_key::text AS last, 0::bigint AS bytes, 8 AS more, @page_size::integer AS most
  UNION ALL
  SELECT read.rows + c.rows, c.last COLLATE "default", read.bytes + c.bytes, 2 * read.more, read.most
  FROM read
  CROSS JOIN LATERAL (
    SELECT count(*)::integer AS rows, min(x.key) AS last, sum(octet_length(x.body))::bigint AS bytes
    FROM (
      SELECT e.key, e.body::text AS body
      FROM holdfast.entries e
      WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
        AND e.collection = @collection::text AND e.key < read.last
      ORDER BY e.key DESC
      LIMIT least(read.more, read.most - read.rows)
    ) x
  ) c
  WHERE c.rows > 0 AND read.rows < read.most AND read.bytes <= @most_bytes::bigint
)
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ORDER BY n.key DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT e.key, e.body::text AS body
    FROM holdfast.entries e
    WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
      AND e.collection = @collection::text AND e.key < @before_key::text
    ORDER BY e.key DESC
    LIMIT (SELECT max(read.rows) FROM read)
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.key DESC;

-- ListOwnEntriesBefore is ListEntriesBefore for a collection of owned entries and one of their owners, whose index it walks.
-- name: ListOwnEntriesBefore :many
WITH RECURSIVE read AS (
  SELECT 0 AS rows, @before_key::text AS last, 0::bigint AS bytes, 8 AS more, @page_size::integer AS most
  UNION ALL
  SELECT read.rows + c.rows, c.last COLLATE "default", read.bytes + c.bytes, 2 * read.more, read.most
  FROM read
  CROSS JOIN LATERAL (
    SELECT count(*)::integer AS rows, min(x.key) AS last, sum(octet_length(x.body))::bigint AS bytes
    FROM (
      SELECT e.key, e.body::text AS body
      FROM holdfast.entries e
      WHERE e.tenant_id = @tenant_id::text AND e.owned AND e.owner_id = @owner_id::text
        AND e.kind = @kind::text AND e.object_id = @object_id::text
        AND e.collection = @collection::text AND e.key < read.last
      ORDER BY e.key DESC
      LIMIT least(read.more, read.most - read.rows)
    ) x
  ) c
  WHERE c.rows > 0 AND read.rows < read.most AND read.bytes <= @most_bytes::bigint
)
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ORDER BY n.key DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT e.key, e.body::text AS body
    FROM holdfast.entries e
    WHERE e.tenant_id = @tenant_id::text AND e.owned AND e.owner_id = @owner_id::text
        AND e.kind = @kind::text AND e.object_id = @object_id::text
      AND e.collection = @collection::text AND e.key < @before_key::text
    ORDER BY e.key DESC
    LIMIT (SELECT max(read.rows) FROM read)
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.key DESC;

-- ListEvents reads an object's journal after a version, for those who follow changes. Where an undo is long only the keys of
-- its entries are read.
-- name: ListEvents :many
SELECT e.version, e.event_type, e.actor, e.event_time,
  CASE WHEN pg_column_size(e.undo) < 2000 AND octet_length(e.undo::text) < 8000 THEN e.undo::text
    ELSE jsonb_build_object('entries', coalesce((
      SELECT jsonb_agg(jsonb_build_array(u.e -> 0, u.e -> 1, NULL, u.e -> 3) ORDER BY u.n) FROM jsonb_array_elements(e.undo -> 'entries') WITH ORDINALITY AS u (e, n)
    ), '[]'))::text END::text AS undo
FROM holdfast.events e
WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
  AND e.version > @after_version::bigint
ORDER BY e.version
LIMIT @page_size::integer;
