-- EnterJanitor makes the rest of the transaction see, of whatever tenant, only what is due or has expired.
-- name: EnterJanitor :one
SELECT set_config('role', 'holdfast_janitor', true), clock_timestamp()::timestamptz AS now;

-- ClaimTimers takes due timers, of whatever tenant; see the function.
-- name: ClaimTimers :many
SELECT tenant_id, kind, object_id, name, due_time, next_time, attempts, last_error
FROM holdfast.claim_timers(@kinds::text[], @at_most::integer, @lease_seconds::double precision);

-- ClaimTimersInTurn takes due timers, of each tenant in turn; see the function.
-- name: ClaimTimersInTurn :many
SELECT tenant_id, kind, object_id, name, due_time, next_time, attempts, last_error
FROM holdfast.claim_timers_in_turn(@kinds::text[], @at_most::integer, @lease_seconds::double precision, @read_at_most::integer);

-- SettleTimer gives a claimed timer back, unless the object has set it again or cleared it.
-- name: SettleTimer :exec
UPDATE holdfast.timers SET lease_time = NULL, next_time = @next_time, attempts = @attempts, last_error = @last_error,
  parked = @parked
WHERE tenant_id = @tenant_id AND kind = @kind AND object_id = @object_id AND name = @name AND due_time = @due_time;

-- DropTimer removes a timer whose object cannot be found any more or does not have it.
-- name: DropTimer :exec
DELETE FROM holdfast.timers t
WHERE t.tenant_id = @tenant_id AND t.kind = @kind AND t.object_id = @object_id AND t.name = @name
  AND t.due_time = @due_time AND NOT EXISTS (
    SELECT FROM holdfast.objects o
    WHERE o.tenant_id = @tenant_id AND o.kind = @kind AND o.object_id = @object_id AND NOT o.deleted
      AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp()) AND o.timers -> t.name IS NOT NULL);

-- CountTimers counts the timers of all tenants that have been due for ten seconds, and those that are parked, each up to a
-- bound.
-- name: CountTimers :one
SELECT coalesce(sum(d.n), 0)::bigint AS overdue,
  (SELECT count(*) FROM (SELECT 1 FROM holdfast.timers WHERE parked LIMIT @at_most::integer) p) AS parked
FROM unnest(@kinds::text[]) AS k
CROSS JOIN LATERAL (
  SELECT count(*) AS n FROM (
    SELECT 1 FROM holdfast.timers t
    WHERE t.kind = k AND NOT t.parked AND t.next_time <= (SELECT clock_timestamp() - interval '10 s')
    LIMIT @at_most
  ) o
) d;
