-- ListByOwner is ListByActivity for the objects of one user.
-- name: ListByOwner :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.activity_time DESC, n.object_id DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT o.object_id, o.owner_id, o.version, o.schema_version, o.state::text AS state, o.create_time, o.update_time,
      o.activity_time, o.expire_time, coalesce(o.timers::text, '')::text AS timers
    FROM holdfast.objects o
    WHERE o.tenant_id = @tenant_id::text AND o.owner_id = @owner_id::text AND o.owner_id <> '' AND o.kind = @kind::text AND NOT o.deleted
      AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
      AND (o.activity_time, o.object_id) < (@before_time::timestamptz, @before_id::text)
      AND starts_with(o.object_id, @prefix::text)
    ORDER BY o.activity_time DESC, o.object_id DESC
    LIMIT @page_size::integer
  ) n
) l
WHERE l.bytes <= @most_bytes::bigint
ORDER BY l.activity_time DESC, l.object_id DESC;
