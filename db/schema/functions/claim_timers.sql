-- claim_timers takes due timers of some kinds, kind by kind, the oldest first, and leaves them to the caller for a while.
-- What another process is at is passed over. A lease only spares work: what runs a timer once is the object's version.
-- The rows are found again by their place; one that moved between snapshot and lock is left for the next time. The
-- settings hold in the function only: where the planner knows too little of the table, it would rather read it all.
CREATE OR REPLACE FUNCTION holdfast.claim_timers(p_kinds text[], p_at_most integer, p_lease_seconds double precision)
RETURNS SETOF holdfast.timers
LANGUAGE sql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
  WITH due AS MATERIALIZED (
    SELECT d.place FROM unnest(p_kinds) AS k
    CROSS JOIN LATERAL (
      SELECT x.ctid AS place FROM holdfast.timers x
      WHERE x.kind = k AND NOT x.parked AND x.next_time <= (SELECT clock_timestamp())
        AND (x.lease_time IS NULL OR x.lease_time <= clock_timestamp())
      ORDER BY x.next_time
      LIMIT p_at_most
      FOR UPDATE SKIP LOCKED
    ) d
    LIMIT p_at_most
  )
  UPDATE holdfast.timers t SET lease_time = clock_timestamp() + make_interval(secs => p_lease_seconds)
  FROM due
  WHERE t.ctid = due.place
  RETURNING t.*
$$;

-- claim_timers_in_turn is claim_timers for when more is due than can be run at once: of the oldest timers, up to a window of each
-- kind, it takes one of each tenant in turn, so that one tenant's backlog does not keep another's timers waiting. It reads the
-- window, which claim_timers does not. More are looked at than are taken, because others may be taking them at this moment.
CREATE OR REPLACE FUNCTION holdfast.claim_timers_in_turn(p_kinds text[], p_at_most integer, p_lease_seconds double precision, p_window integer)
RETURNS SETOF holdfast.timers
LANGUAGE sql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
  WITH due AS MATERIALIZED (
    SELECT d.place, d.tenant_id, d.next_time FROM unnest(p_kinds) AS k
    CROSS JOIN LATERAL (
      SELECT x.ctid AS place, x.tenant_id, x.next_time FROM holdfast.timers x
      WHERE x.kind = k AND NOT x.parked AND x.next_time <= (SELECT clock_timestamp())
        AND (x.lease_time IS NULL OR x.lease_time <= clock_timestamp())
      ORDER BY x.next_time
      LIMIT p_window
    ) d
  ), turns AS MATERIALIZED (
    SELECT n.place FROM (
      SELECT d.place, d.next_time, row_number() OVER (PARTITION BY d.tenant_id ORDER BY d.next_time) AS turn FROM due d
    ) n
    ORDER BY n.turn, n.next_time
    LIMIT 4 * p_at_most
  ), taken AS MATERIALIZED (
    SELECT l.place FROM turns
    CROSS JOIN LATERAL (
      SELECT x.ctid AS place FROM holdfast.timers x
      WHERE x.ctid = turns.place AND NOT x.parked AND x.next_time <= (SELECT clock_timestamp())
        AND (x.lease_time IS NULL OR x.lease_time <= clock_timestamp())
      FOR UPDATE SKIP LOCKED
    ) l
    LIMIT p_at_most
  )
  UPDATE holdfast.timers t SET lease_time = clock_timestamp() + make_interval(secs => p_lease_seconds)
  FROM taken
  WHERE t.ctid = taken.place
  RETURNING t.*
$$;

REVOKE ALL ON FUNCTION holdfast.claim_timers, holdfast.claim_timers_in_turn FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.claim_timers, holdfast.claim_timers_in_turn TO holdfast_janitor;
