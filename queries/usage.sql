-- AddUsage adds to the totals of tenants and users. Two that name the same rows must name them in the same order. What comes
-- within a minute of a user's erasure was counted before it, and would bring the user's id back.
-- name: AddUsage :exec
INSERT INTO holdfast.usage AS u (tenant_id, owner_id, objects, bytes)
SELECT d.tenant_id, d.owner_id, d.objects, d.bytes
FROM (SELECT unnest(@tenants::text[]) AS tenant_id, unnest(@owners::text[]) AS owner_id, unnest(@objects::bigint[]) AS objects,
  unnest(@bytes::bigint[]) AS bytes) d
WHERE (d.objects <> 0 OR d.bytes <> 0) AND NOT EXISTS (SELECT FROM holdfast.erasures e
  WHERE e.tenant_id = d.tenant_id AND e.user_hash = sha256(convert_to(d.tenant_id, 'UTF8') || '\x00'::bytea || convert_to(d.owner_id, 'UTF8'))
    AND e.erase_time > clock_timestamp() - interval '1 minute' OFFSET 0)
ON CONFLICT (tenant_id, owner_id) DO UPDATE SET objects = u.objects + EXCLUDED.objects, bytes = u.bytes + EXCLUDED.bytes;

-- LoadUsage reads the totals that there are of some tenants and users.
-- name: LoadUsage :many
SELECT u.tenant_id, u.owner_id, u.objects, u.bytes
FROM (SELECT unnest(@tenants::text[]) AS tenant_id, unnest(@owners::text[]) AS owner_id) k
CROSS JOIN LATERAL (
  SELECT x.tenant_id, x.owner_id, x.objects, x.bytes FROM holdfast.usage x
  WHERE x.tenant_id = k.tenant_id AND x.owner_id = k.owner_id OFFSET 0
) u;

-- ListFullTenants lists the tenants that have come to some share of a quota, the fullest first. A quota of 0 is none.
-- name: ListFullTenants :many
SELECT f.tenant_id, f.objects_ratio, f.bytes_ratio FROM (
  SELECT u.tenant_id, coalesce(u.objects / nullif(@objects_quota::double precision, 0), 0)::double precision AS objects_ratio,
    coalesce(u.bytes / nullif(@bytes_quota::double precision, 0), 0)::double precision AS bytes_ratio
  FROM holdfast.usage u WHERE u.owner_id = ''
) f
WHERE greatest(f.objects_ratio, f.bytes_ratio) >= @at_least::double precision
ORDER BY greatest(f.objects_ratio, f.bytes_ratio) DESC, f.tenant_id
LIMIT @at_most::integer;

-- ListUsage reads all totals of a tenant.
-- name: ListUsage :many
SELECT u.owner_id, u.objects, u.bytes FROM holdfast.usage u WHERE u.tenant_id = @tenant_id::text;

-- MeasureObjects measures what is stored of a tenant's objects, page by page. A row counts as 256 bytes for its keys and its places
-- in indexes, and for what it holds as it lies on disk. What sleeps counts as it does awake. counted: the object is older than since.
-- What is newer is in the totals that servers add up, and so is what was deleted since.
-- name: MeasureObjects :many
SELECT o.kind, o.object_id, o.owner_id, (o.create_time < @since::timestamptz)::boolean AS counted,
  (NOT o.deleted OR o.update_time >= @since::timestamptz)::boolean AS live,
  (256 + coalesce(pg_column_size(o.state), 0) + t.bytes + e.bytes + s.bytes + v.bytes)::bigint AS bytes
FROM (
  SELECT x.kind, x.object_id, x.owner_id, x.create_time, x.update_time, x.deleted, x.state FROM holdfast.objects x
  WHERE x.tenant_id = @tenant_id::text AND (x.kind, x.object_id) > (@after_kind::text, @after_object_id::text)
  ORDER BY x.kind, x.object_id
  LIMIT @page_size::integer
) o
CROSS JOIN LATERAL (
  SELECT coalesce(sum(256 + 3 * octet_length(x.term)), 0) AS bytes FROM holdfast.terms x
  WHERE x.tenant_id = @tenant_id AND x.kind = o.kind AND x.object_id = o.object_id OFFSET 0
) t
CROSS JOIN LATERAL (
  SELECT coalesce(sum(256 + pg_column_size(x.body)), 0) AS bytes FROM holdfast.entries x
  WHERE x.tenant_id = @tenant_id AND x.kind = o.kind AND x.object_id = o.object_id OFFSET 0
) e
CROSS JOIN LATERAL (
  SELECT coalesce(sum(x.bytes), 0) AS bytes FROM holdfast.sleepers x
  WHERE x.tenant_id = @tenant_id AND x.kind = o.kind AND x.object_id = o.object_id OFFSET 0
) s
CROSS JOIN LATERAL (
  SELECT coalesce(sum(256 + pg_column_size(x.undo) + coalesce(pg_column_size(x.reply), 0)), 0) AS bytes FROM holdfast.events x
  WHERE x.tenant_id = @tenant_id AND x.kind = o.kind AND x.object_id = o.object_id OFFSET 0
) v
ORDER BY o.kind, o.object_id;

-- DropEmptyUsage removes totals of 0.
-- name: DropEmptyUsage :exec
DELETE FROM holdfast.usage WHERE tenant_id = @tenant_id::text AND objects = 0 AND bytes = 0;

-- ReturnUsage takes what a user has from the tenant's total.
-- name: ReturnUsage :exec
UPDATE holdfast.usage t SET objects = t.objects - u.objects, bytes = t.bytes - u.bytes
FROM holdfast.usage u
WHERE t.tenant_id = @tenant_id::text AND t.owner_id = '' AND u.tenant_id = @tenant_id AND u.owner_id = @owner_id::text;

-- DropUsage removes a user's total.
-- name: DropUsage :exec
DELETE FROM holdfast.usage WHERE tenant_id = @tenant_id::text AND owner_id = @owner_id::text;
