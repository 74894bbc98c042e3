-- ViewObjectFound reads the object of the id that found_id finds; see the function.
-- name: ViewObjectFound :many
SELECT o.object_id, o.owner_id, o.version, o.schema_version, coalesce(o.state::text, '')::text AS state, o.create_time,
  o.update_time, o.activity_time, o.expire_time, coalesce(o.timers::text, '')::text AS timers
FROM (
  SELECT holdfast.found_id(@tenant_id::text, @given::text, @found_kinds::text[], @found_ids::text[], @found_fields::text[]) AS id
) f
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.objects x
  WHERE x.tenant_id = @tenant_id AND x.kind = @kind::text AND x.object_id = f.id
  OFFSET 0
) o
WHERE NOT o.deleted;

-- ListObjectsFound lists the newest live objects that have any of some terms, which found_terms makes out of what is
-- stored; see the function. It walks each term's index, so what has none of them costs nothing.
-- name: ListObjectsFound :many
SELECT l.object_id, l.owner_id, l.version, l.schema_version, l.state, l.create_time, l.update_time, l.activity_time,
  l.expire_time, l.timers
FROM (
  SELECT n.*, sum(octet_length(n.state)) OVER (ORDER BY n.activity_time DESC, n.object_id DESC ROWS UNBOUNDED PRECEDING) - octet_length(n.state) AS bytes
  FROM (
    SELECT n.object_id, n.owner_id, n.version, n.schema_version, n.state::text AS state, n.create_time, n.update_time,
      n.activity_time, n.expire_time, coalesce(n.timers::text, '')::text AS timers
    FROM (
      SELECT DISTINCT ON (l.activity_time, l.object_id) l.*
      FROM (
        SELECT unnest(holdfast.found_terms(@tenant_id::text, @given::text, @found_kinds::text[], @found_ids::text[],
          @found_fields::text[], @via_kind::text, @via_fields::text[], @prefixes::text[], @suffix::text, @otherwise::text)) AS term
      ) f
      CROSS JOIN LATERAL (
        SELECT o.* FROM holdfast.terms t
        CROSS JOIN LATERAL (
          SELECT * FROM holdfast.objects x
          WHERE x.tenant_id = @tenant_id AND x.kind = @kind::text AND x.object_id = t.object_id
          OFFSET 0
        ) o
        WHERE t.tenant_id = @tenant_id AND t.term = f.term AND NOT o.deleted
          AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp())
          -- True of all; it says to the planner that the index is in order, as the same words do in ListObjectsByTerms.
          AND (t.activity_time, t.object_id) < (@before_time::timestamptz, '')
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

-- EnterEndpoint makes the rest of the transaction see whose the endpoint of that id is; "*": of all of them.
-- name: EnterEndpoint :one
SELECT set_config('role', 'holdfast_auth', true), set_config('app.endpoint_id', @endpoint_id::text, true);

-- FindEndpoint reads which tenant has the endpoint of that id: one, or none.
-- name: FindEndpoint :many
SELECT tenant_id, object_id FROM holdfast.objects
WHERE kind = 'linear_endpoint' AND object_id = @object_id AND NOT deleted;

-- ListEndpoints reads which endpoints there are, behind one.
-- name: ListEndpoints :many
SELECT tenant_id, object_id FROM holdfast.objects
WHERE kind = 'linear_endpoint' AND NOT deleted AND object_id > @after_id::text
ORDER BY object_id
LIMIT @page_size::integer;
