-- EnterVerification makes the rest of the transaction see what many credentials name: API keys, and the objects of users'
-- sessions. It answers the database's clock.
-- name: EnterVerification :one
SELECT set_config('role', 'holdfast_verify', true), set_config('app.key_ids', @key_ids::text, true),
  set_config('app.session_objects', @session_objects::text, true), clock_timestamp()::timestamptz AS now;

-- FindKeysOfIDs reads the keys in force of some ids.
-- name: FindKeysOfIDs :many
SELECT k.ord::integer AS ord, x.tenant_id, x.owner_id, x.secret_hash
FROM (SELECT unnest(@ords::integer[]) AS ord, unnest(@key_ids::text[]) AS key_id) k
CROSS JOIN LATERAL (
  SELECT * FROM holdfast.api_keys a
  WHERE a.key_id = k.key_id AND a.revoke_time IS NULL
  OFFSET 0
) x;

-- FindSessions reads the sessions that credentials name, each a part of its user's object. An object that has expired, or
-- was deleted and has no state, has none. (With NOT deleted in the inner query the planner took the index that has this
-- condition, and read it from end to end.)
-- name: FindSessions :many
SELECT k.ord::integer AS ord, o.tenant_id, o.owner_id, (o.state -> 'sessions' -> k.session_id)::text AS session
FROM (
  SELECT unnest(@ords::integer[]) AS ord, unnest(@object_ids::text[]) AS object_id, unnest(@session_ids::text[]) AS session_id
) k
CROSS JOIN LATERAL (
  SELECT x.tenant_id, x.owner_id, x.state FROM holdfast.objects x
  WHERE x.kind = 'user_sessions' AND x.object_id = k.object_id
    AND (x.expire_time IS NULL OR x.expire_time > clock_timestamp())
  OFFSET 0
) o
WHERE o.state -> 'sessions' ? k.session_id;
