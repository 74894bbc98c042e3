-- Entries are read here as their namesakes in objects.sql and history.sql read them, packed or not. These statements are
-- for objects that have packs, in the range that is asked for.

-- ListPackedAfter is ListEntriesAfter; see the function.
-- name: ListPackedAfter :many
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT l.key::text AS key, l.body::text AS body
    FROM holdfast.list_packed_after(@tenant_id::text, @kind::text, @object_id::text, @collection::text, @after_key::text, @page_size::integer) l
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint;

-- ListPackedBefore is ListEntriesBefore; see the function.
-- name: ListPackedBefore :many
SELECT l.key, l.body
FROM (
  SELECT n.key, n.body, sum(octet_length(n.body)) OVER (ROWS UNBOUNDED PRECEDING) - octet_length(n.body) AS bytes
  FROM (
    SELECT l.key::text AS key, l.body::text AS body
    FROM holdfast.list_packed_before(@tenant_id::text, @kind::text, @object_id::text, @collection::text, @before_key::text, @page_size::integer) l
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint;

-- FindOldest reads the first of the newest keys, packed or not, and how many there are.
-- name: FindOldest :one
SELECT coalesce(min(l.key), '')::text AS key, count(*)::bigint AS keys
FROM holdfast.list_packed_before(@tenant_id::text, @kind::text, @object_id::text, @collection::text, @before_key::text, @page_size::integer) l;

-- LoadPacked is LoadEntries for entries that are packed.
-- name: LoadPacked :many
WITH k AS MATERIALIZED (
  SELECT unnest(@ords::integer[]) AS ord, unnest(@kinds::text[]) AS kind, unnest(@ids::text[]) AS object_id,
    unnest(@collections::text[]) AS collection, unnest(@keys::text[]) AS key
), f AS MATERIALIZED (
  SELECT DISTINCT k.ord, k.kind, k.object_id, k.collection, p.first_key FROM k
  CROSS JOIN LATERAL (
    SELECT x.first_key, x.last_key FROM holdfast.packs x
    WHERE x.tenant_id = @tenant_id::text AND x.kind = k.kind AND x.object_id = k.object_id
      AND x.collection = k.collection AND x.first_key <= k.key
    ORDER BY x.first_key DESC
    LIMIT 1
  ) p
  WHERE p.last_key >= k.key
)
SELECT f.ord::integer AS ord, f.collection::text AS collection, (u.e ->> 0)::text AS key, (u.e -> 2)::text AS body
FROM f
CROSS JOIN LATERAL (
  SELECT x.entries FROM holdfast.packs x
  WHERE x.tenant_id = @tenant_id AND x.kind = f.kind AND x.object_id = f.object_id AND x.collection = f.collection
    AND x.first_key = f.first_key
  OFFSET 0
) p
CROSS JOIN LATERAL jsonb_array_elements(p.entries) AS u (e)
WHERE (f.ord, f.collection, u.e ->> 0) IN (SELECT k.ord, k.collection, k.key FROM k);

-- ListAllPacked pages through the packed entries of all collections of an object, by pack.
-- name: ListAllPacked :many
SELECT s.collection, s.first_key, (u.e ->> 0)::text AS key, (u.e -> 2)::text AS body
FROM (
  SELECT p.collection, p.first_key, p.entries FROM holdfast.packs p
  WHERE p.tenant_id = @tenant_id::text AND p.kind = @kind::text AND p.object_id = @object_id::text
    AND (p.collection, p.first_key) > (@after_collection::text, @after_first_key::text)
  ORDER BY p.collection, p.first_key
  LIMIT @packs::integer
) s
CROSS JOIN LATERAL jsonb_array_elements(s.entries) AS u (e);

-- FindPackable pages through a kind's objects and tells which have entries to pack; see the function.
-- name: FindPackable :many
SELECT f.object_id::text AS object_id, f.activity_time::timestamptz AS activity_time, f.packable::boolean AS packable
FROM holdfast.find_packable(@tenant_id::text, @kind::text, @collections::text[], @entries::integer, @before_time::timestamptz,
  @before_id::text, @page_size::integer) f;

-- PackObject packs entries of an object; see the function.
-- name: PackObject :one
SELECT p.packs::bigint AS packs, p.entries::bigint AS entries, p.bytes_before::bigint AS bytes_before, p.bytes_after::bigint AS bytes_after
FROM holdfast.pack_object(@tenant_id::text, @lock::bigint, @kind::text, @object_id::text, @collections::text[],
  @idle_seconds::double precision, @keep::integer, @size::integer, @bytes::integer, @most::integer) p;

-- UnpackObject makes packs of an object entries again; see the function.
-- name: UnpackObject :one
SELECT holdfast.unpack_object(@tenant_id::text, @lock::bigint, @kind::text, @object_id::text, @mention::text, @most::integer)::bigint AS packs;

-- FindPacked lists objects of a tenant that have packs, behind one of them: those with a pack that holds a text, or all
-- where that is empty.
-- name: FindPacked :many
SELECT DISTINCT p.kind, p.object_id FROM holdfast.packs p
WHERE p.tenant_id = @tenant_id::text AND (p.kind, p.object_id) > (@after_kind::text, @after_object_id::text)
  AND (@mention::text = '' OR strpos(p.entries::text, @mention) > 0)
ORDER BY p.kind, p.object_id
LIMIT @page_size::integer;

-- ListStoredTenants lists the tenants that were made, and those that have events or packs; see the function.
-- name: ListStoredTenants :many
SELECT t::text AS tenant_id FROM holdfast.list_stored_tenants() AS t
UNION
SELECT tenant_id FROM holdfast.tenants
ORDER BY tenant_id;
