-- An object that sleeps has its entries and events in rows of sleepers: one for each of the two tables, compressed.

-- FindIdle pages through a kind's objects, newest activity first. Idle are those that may be put to sleep: awake, not touched since,
-- not about to expire, without entries of their own owners, and with as many rows and bytes as are worth it.
-- The page is planned by itself: next to objects of many entries the planner took reading and sorting the whole kind to be as cheap.
-- name: FindIdle :many
WITH o AS MATERIALIZED (
  SELECT x.object_id, x.owner_id, x.activity_time, (NOT x.asleep AND greatest(x.update_time, x.wake_time) <= @since::timestamptz
    AND (x.expire_time IS NULL OR x.expire_time > @until::timestamptz))::boolean AS rests
  FROM holdfast.objects x
  WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND NOT x.deleted
    AND (x.activity_time, x.object_id) < (@before_time::timestamptz, @before_id::text)
  ORDER BY x.activity_time DESC, x.object_id DESC
  LIMIT @page_size::integer
)
SELECT o.object_id, o.activity_time,
  (o.rests AND l.rows >= @least_rows::integer AND l.rows < @enough_rows::integer AND l.bytes <= @most_bytes::bigint AND l.others = 0)::boolean AS idle
FROM o
CROSS JOIN LATERAL (
  SELECT count(*) AS rows, coalesce(sum(octet_length(r.row::text)), 0) AS bytes, count(*) FILTER (WHERE r.owner_id IS DISTINCT FROM o.owner_id) AS others
  FROM (
    (SELECT CASE WHEN NOT x.owned THEN x.owner_id END AS owner_id, to_jsonb(x) AS row FROM holdfast.entries x
    WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = o.object_id AND o.rests
    LIMIT @enough_rows)
    UNION ALL
    (SELECT x.owner_id, to_jsonb(x) FROM holdfast.events x
    WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = o.object_id AND o.rests
    LIMIT @enough_rows)
  ) r
) l
ORDER BY o.activity_time DESC, o.object_id DESC;

-- SleepGently is for transactions that put to sleep or wake: if their commit is lost in a crash, nothing is.
-- name: SleepGently :exec
SELECT set_config('synchronous_commit', 'off', true);

-- TryLock takes an object's advisory lock if nobody has it.
-- name: TryLock :one
SELECT pg_try_advisory_xact_lock(@lock::bigint)::boolean AS locked;

-- HoldIdle locks the row of an object that may be put to sleep, if nobody has it: a sweep, for one.
-- name: HoldIdle :many
SELECT o.object_id FROM holdfast.objects o
WHERE o.tenant_id = @tenant_id::text AND o.kind = @kind::text AND o.object_id = @object_id::text AND NOT o.deleted AND NOT o.asleep
  AND greatest(o.update_time, o.wake_time) <= @since::timestamptz AND (o.expire_time IS NULL OR o.expire_time > @until::timestamptz)
FOR UPDATE SKIP LOCKED;

-- ReadParts reads the rows of an object, a line each, as an export has them, with what they count in quotas.
-- name: ReadParts :many
SELECT 'entries'::text AS part, x.owner_id, string_agg((to_jsonb(x) - 'tenant_id')::text, E'\n' ORDER BY x.collection, x.key)::text AS lines,
  count(*)::bigint AS row_count, sum(256 + pg_column_size(x.body))::bigint AS bytes, NULL::timestamptz AS last_time
FROM holdfast.entries x
WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = @object_id::text
GROUP BY x.owner_id
UNION ALL
SELECT 'events', x.owner_id, string_agg((to_jsonb(x) - 'tenant_id')::text, E'\n' ORDER BY x.version),
  count(*), sum(256 + pg_column_size(x.undo) + coalesce(pg_column_size(x.reply), 0)), max(x.event_time)
FROM holdfast.events x
WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = @object_id
GROUP BY x.owner_id;

-- PutPart stores what ReadParts has read.
-- name: PutPart :exec
INSERT INTO holdfast.sleepers (tenant_id, kind, object_id, part, owner_id, row_count, bytes, last_time, compressed)
VALUES (@tenant_id::text, @kind::text, @object_id::text, @part::text, @owner_id::text, @row_count::bigint, @bytes::bigint,
  sqlc.narg(last_time)::timestamptz, @compressed::bytea);

-- FallAsleep deletes the rows of an object that has its parts.
-- name: FallAsleep :exec
WITH entries AS (
  DELETE FROM holdfast.entries x WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = @object_id::text
), events AS (
  DELETE FROM holdfast.events x WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = @object_id
)
UPDATE holdfast.objects o SET asleep = true
WHERE o.tenant_id = @tenant_id AND o.kind = @kind AND o.object_id = @object_id;

-- WakeUp ends the sleep of an object, and answers its parts, which are no longer stored. A sweep locks the object first, too.
-- name: WakeUp :many
WITH o AS (
  UPDATE holdfast.objects x SET asleep = false, wake_time = clock_timestamp()
  WHERE x.tenant_id = @tenant_id::text AND x.kind = @kind::text AND x.object_id = @object_id::text AND x.asleep
  RETURNING x.tenant_id, x.kind, x.object_id
)
DELETE FROM holdfast.sleepers s USING o
WHERE s.tenant_id = o.tenant_id AND s.kind = o.kind AND s.object_id = o.object_id
RETURNING s.part, s.compressed;

-- ListSleepers pages through a tenant's sleepers.
-- name: ListSleepers :many
SELECT s.kind, s.object_id, s.part, s.compressed FROM holdfast.sleepers s
WHERE s.tenant_id = @tenant_id::text AND (s.kind, s.object_id, s.part) > (@after_kind::text, @after_object_id::text, @after_part::text)
ORDER BY s.kind, s.object_id, s.part
LIMIT 20;

-- ListStoredTenants lists the tenants that were made, and those that have rows; see the function.
-- name: ListStoredTenants :many
SELECT t::text AS tenant_id FROM holdfast.list_stored_tenants() AS t
UNION
SELECT tenant_id FROM holdfast.tenants
ORDER BY tenant_id;
