-- ListEventsBack reads an object's journal backwards from a version on.
-- name: ListEventsBack :many
SELECT l.version, l.event_type, l.actor, l.event_time, l.request_id, l.undo
FROM (
  SELECT n.*, sum(octet_length(n.undo)) OVER (ORDER BY n.version DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.undo) AS bytes
  FROM (
    SELECT e.version, e.event_type, e.actor, e.event_time, coalesce(e.request_id, '')::text AS request_id, e.undo::text AS undo
    FROM holdfast.events e
    WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
      AND e.version <= @from_version::bigint
    ORDER BY e.version DESC
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.version DESC;

-- ListAllEntries pages through all collections of an object, for a reader; see LoadEntries.
-- name: ListAllEntries :many
SELECT e.collection, e.key, e.body::text AS body, e.owned, e.owner_id
FROM holdfast.entries e
WHERE e.tenant_id = @tenant_id::text AND e.kind = @kind::text AND e.object_id = @object_id::text
  AND (e.collection, e.key) > (@after_collection::text, @after_key::text) AND (NOT e.owned OR @reader::text IN ('', e.owner_id))
ORDER BY e.collection, e.key
LIMIT @page_size::integer;

-- MeasureObject tells how many entries an object has, awake or not, and what it takes on disk before its indexes.
-- name: MeasureObject :one
SELECT
  (SELECT pg_column_size(o.*) FROM holdfast.objects o
    WHERE o.tenant_id = @tenant_id::text AND o.kind = @kind::text AND o.object_id = @object_id::text)::bigint AS state_bytes,
  (count(e.key) + max(s.entry_count))::bigint AS entry_count, (coalesce(sum(pg_column_size(e.*)), 0) + max(s.bytes))::bigint AS entry_bytes
FROM (
  SELECT coalesce(sum(x.row_count), 0) AS entry_count, coalesce(sum(octet_length(x.compressed)), 0) AS bytes FROM holdfast.sleepers x
  WHERE x.tenant_id = @tenant_id AND x.kind = @kind AND x.object_id = @object_id AND x.part = 'entries'
) s
LEFT JOIN holdfast.entries e ON e.tenant_id = @tenant_id AND e.kind = @kind AND e.object_id = @object_id;

-- ListByID pages through a kind's live objects by id, those that begin with a prefix: no id has a character behind '~'.
-- name: ListByID :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.object_id ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT o.object_id, o.owner_id, o.version, o.schema_version, o.state::text AS state, o.create_time, o.update_time,
      o.activity_time, o.expire_time, coalesce(o.timers::text, '')::text AS timers
    FROM holdfast.objects o
    WHERE o.tenant_id = @tenant_id::text AND o.kind = @kind::text AND o.object_id >= @prefix::text AND o.object_id < @prefix || '~'
      AND o.object_id > @after_id::text AND NOT o.deleted AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
      AND (@any_owner::boolean OR o.owner_id = @owner_id::text)
    ORDER BY o.object_id
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.object_id;

-- ListByActivity is ListByID in another order: newest activity first.
-- name: ListByActivity :many
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
      AND starts_with(o.object_id, @prefix::text) AND (@any_owner::boolean OR o.owner_id = @owner_id::text)
    ORDER BY o.activity_time DESC, o.object_id DESC
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.activity_time DESC, l.object_id DESC;

-- ListOldSchemas pages through a kind's objects that an older release has written, by id.
-- name: ListOldSchemas :many
SELECT o.object_id
FROM holdfast.objects o
WHERE o.tenant_id = @tenant_id::text AND o.kind = @kind::text AND o.object_id > @after_id::text
  AND o.schema_version < @schema_version::integer AND NOT o.deleted
  AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
ORDER BY o.object_id
LIMIT @page_size::integer;

-- ListTimers pages through a tenant's timers, of one kind or of all, by object and name. On a table that was never analysed
-- it may read and sort all of the tenant's: it is for people.
-- name: ListTimers :many
SELECT t.kind, t.object_id, t.name, t.owner_id, t.due_time, t.next_time, t.attempts, t.last_error, t.parked
FROM holdfast.timers t
WHERE t.tenant_id = @tenant_id::text AND t.kind >= @first_kind::text AND t.kind <= @last_kind::text
  AND (@object_id::text = '' OR t.object_id = @object_id) AND (NOT @only_parked::boolean OR t.parked)
  AND (@also_tenants::boolean OR t.owner_id <> '')
  AND (t.kind, t.object_id, t.name) > (@after_kind::text, @after_object_id::text, @after_name::text)
ORDER BY t.kind, t.object_id, t.name
LIMIT @page_size::integer;

-- ListTimersOfObject is ListTimers for one object.
-- name: ListTimersOfObject :many
SELECT t.kind, t.object_id, t.name, t.owner_id, t.due_time, t.next_time, t.attempts, t.last_error, t.parked
FROM holdfast.timers t
WHERE t.tenant_id = @tenant_id::text AND t.kind = @kind::text AND t.object_id = @object_id::text AND t.name > @after_name::text
  AND (NOT @only_parked::boolean OR t.parked) AND (@also_tenants::boolean OR t.owner_id <> '')
ORDER BY t.name
LIMIT @page_size::integer;
