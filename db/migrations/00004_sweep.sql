-- +goose Up

-- What has expired is swept in the order in which it expired, whatever tenant it belongs to.
DROP INDEX holdfast.objects_expire_idx;
CREATE INDEX objects_expire_idx ON holdfast.objects (expire_time) WHERE expire_time IS NOT NULL;

-- The janitor deletes rows of objects that have expired. It may not read what is in them: of every table it sees the
-- columns that name a row. OFFSET 0 keeps the planner from hashing all expired objects to look at the entries of one.
-- UPDATE of one column is what FOR UPDATE asks for.
REVOKE SELECT ON holdfast.objects FROM holdfast_janitor;
GRANT SELECT (tenant_id, kind, object_id, owner_id, expire_time), UPDATE (base_version), DELETE ON holdfast.objects TO holdfast_janitor;
-- +goose StatementBegin
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['terms', 'entries', 'events'] LOOP
    EXECUTE format('GRANT SELECT (tenant_id, kind, object_id), DELETE ON holdfast.%I TO holdfast_janitor', t);
    EXECUTE format($policy$
      CREATE POLICY %1$I ON holdfast.%2$I TO holdfast_janitor USING (EXISTS (
        SELECT FROM holdfast.objects o
        WHERE o.tenant_id = %2$I.tenant_id AND o.kind = %2$I.kind AND o.object_id = %2$I.object_id
          AND o.expire_time <= (SELECT clock_timestamp())
        OFFSET 0))
      $policy$, t || '_janitor', t);
  END LOOP;
END
$$;
-- +goose StatementEnd
GRANT DELETE ON holdfast.timers TO holdfast_janitor;
-- One policy instead of two, whose order would be Postgres's: what is due is decided without a look at the object.
DROP POLICY timers_janitor ON holdfast.timers;
CREATE POLICY timers_janitor ON holdfast.timers TO holdfast_janitor USING (
  NOT parked AND next_time <= (SELECT clock_timestamp()) OR EXISTS (
    SELECT FROM holdfast.objects o
    WHERE o.tenant_id = timers.tenant_id AND o.kind = timers.kind AND o.object_id = timers.object_id
      AND o.expire_time <= (SELECT clock_timestamp())
    OFFSET 0));
-- Parked timers are counted, for the operator to hear of. There are few of them.
CREATE POLICY timers_janitor_parked ON holdfast.timers FOR SELECT TO holdfast_janitor USING (parked);
CREATE INDEX timers_parked_idx ON holdfast.timers (tenant_id) WHERE parked;
-- timers_janitor bounds no scan of an index any more, so the statement has to, by a clock that is read once: this is the function
-- as it was, but for that.
-- +goose StatementBegin
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
-- +goose StatementEnd
-- Of the journal the janitor sees when each object's events were, and deletes those that are older than the least
-- retention, which is a day.
GRANT SELECT (version, event_time) ON holdfast.events TO holdfast_janitor;
CREATE POLICY events_janitor_walk ON holdfast.events FOR SELECT TO holdfast_janitor USING (true);
CREATE POLICY events_janitor_trim ON holdfast.events FOR DELETE TO holdfast_janitor
  USING (event_time <= (SELECT clock_timestamp() - interval '24 hours'));

-- sweep_expired deletes a batch of expired objects with all their rows, and answers how many rows went and when the last
-- of the objects had expired: the next batch begins there, because the index still leads to the rows that are gone. What
-- another transaction holds is passed over: someone creates the object anew, or sweeps beside us. A statement an object
-- and table, because a join would be planned by what the planner believes of the tables.
-- +goose StatementBegin
CREATE FUNCTION holdfast.sweep_expired(
  p_after timestamptz,
  p_limit integer,
  OUT last_time timestamptz,
  OUT objects bigint,
  OUT terms bigint,
  OUT entries bigint,
  OUT events bigint,
  OUT timers bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  o record;
  n bigint;
BEGIN
  last_time := p_after;
  objects := 0; terms := 0; entries := 0; events := 0; timers := 0;
  FOR o IN
    SELECT x.tenant_id, x.kind, x.object_id, x.expire_time FROM holdfast.objects x
    WHERE x.expire_time >= p_after AND x.expire_time <= clock_timestamp()
    ORDER BY x.expire_time
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  LOOP
    DELETE FROM holdfast.terms x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    terms := terms + n;
    DELETE FROM holdfast.entries x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    entries := entries + n;
    DELETE FROM holdfast.events x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    events := events + n;
    DELETE FROM holdfast.timers x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    timers := timers + n;
    -- Last: while it is there the policies let us at the rows above.
    DELETE FROM holdfast.objects x WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id;
    objects := objects + 1;
    last_time := o.expire_time;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- trim_journal walks the journal from object to object, one probe of the primary key each, from behind the object that
-- at_tenant_id, at_kind and at_object_id name, and deletes events from before p_before. It stops after p_objects objects
-- or about p_events events and answers where; done: there are no more. An index by time would be quicker to trim by, and
-- would cost every write.
-- +goose StatementBegin
CREATE FUNCTION holdfast.trim_journal(
  p_before timestamptz,
  p_objects integer,
  p_events integer,
  INOUT at_tenant_id text,
  INOUT at_kind text,
  INOUT at_object_id text,
  OUT objects bigint,
  OUT events bigint,
  OUT done boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  chunk CONSTANT integer := 500;
  o record;
  upto bigint; -- the newest version of the chunk that goes
  n bigint;
BEGIN
  objects := 0; events := 0; done := false;
  WHILE objects < p_objects LOOP
    SELECT x.tenant_id, x.kind, x.object_id, x.event_time INTO o FROM holdfast.events x
    WHERE (x.tenant_id, x.kind, x.object_id) > (at_tenant_id, at_kind, at_object_id)
    ORDER BY x.tenant_id, x.kind, x.object_id, x.version
    LIMIT 1;
    IF NOT FOUND THEN
      done := true;
      RETURN;
    END IF;
    n := CASE WHEN o.event_time < p_before THEN chunk ELSE 0 END;
    WHILE n = chunk LOOP
      IF events >= p_events THEN
        RETURN; -- the next call comes back to this object
      END IF;
      SELECT max(c.version) FILTER (WHERE c.event_time < p_before) INTO upto FROM (
        SELECT x.version, x.event_time FROM holdfast.events x
        WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id
        ORDER BY x.version
        LIMIT chunk
      ) c;
      DELETE FROM holdfast.events x
      WHERE x.tenant_id = o.tenant_id AND x.kind = o.kind AND x.object_id = o.object_id AND x.version <= upto;
      GET DIAGNOSTICS n = ROW_COUNT;
      events := events + n;
    END LOOP;
    objects := objects + 1;
    at_tenant_id := o.tenant_id; at_kind := o.kind; at_object_id := o.object_id;
  END LOOP;
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION holdfast.sweep_expired, holdfast.trim_journal FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.sweep_expired, holdfast.trim_journal TO holdfast_janitor;

-- Once an object was swept its versions count from 1 again, so a version alone does not say which life it is of: a
-- change that was computed from the earlier one must not pass the fence. It passes where the row is of the life that the
-- change carries on, or where it begins a new one over a row that is dead.
-- +goose StatementBegin
DO $do$
DECLARE
  f regprocedure;
  was text;
  now text;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    was := pg_get_functiondef(f);
    now := replace(was, 'WHERE o.version = EXCLUDED.base_version', 'WHERE o.version = EXCLUDED.base_version
      AND (o.create_time = EXCLUDED.create_time OR o.create_time < EXCLUDED.create_time
        AND (o.deleted OR o.expire_time <= EXCLUDED.create_time))');
    ASSERT was <> now, 'the fence of store_changes is not where it was';
    EXECUTE now;
  END LOOP;
END
$do$;
-- +goose StatementEnd

-- Autovacuum waits for a fifth of a table to be dead, which on a large one is days of garbage and a vacuum of hours.
-- Objects and terms are updated in place all the time, and a sweep leaves many dead rows in all of them at once.
ALTER TABLE holdfast.objects SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE holdfast.terms SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
-- Entries and events are almost only inserted: the vacuum that counts is the one for insertions, which marks pages as
-- all-visible and frozen, so that a later one passes them over. Small and often instead of all at once.
ALTER TABLE holdfast.entries SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE holdfast.events SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05);

-- +goose Down
ALTER TABLE holdfast.events RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE holdfast.entries RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE holdfast.terms RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
ALTER TABLE holdfast.objects RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor);
-- +goose StatementBegin
DO $do$
DECLARE
  f regprocedure;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    EXECUTE replace(pg_get_functiondef(f), '
      AND (o.create_time = EXCLUDED.create_time OR o.create_time < EXCLUDED.create_time
        AND (o.deleted OR o.expire_time <= EXCLUDED.create_time))', '');
  END LOOP;
END
$do$;
-- +goose StatementEnd
DROP FUNCTION holdfast.trim_journal;
DROP FUNCTION holdfast.sweep_expired;
DROP POLICY events_janitor_trim ON holdfast.events;
DROP POLICY events_janitor_walk ON holdfast.events;
DROP INDEX holdfast.timers_parked_idx;
DROP POLICY timers_janitor_parked ON holdfast.timers;
DROP POLICY timers_janitor ON holdfast.timers;
CREATE POLICY timers_janitor ON holdfast.timers TO holdfast_janitor
  USING (NOT parked AND next_time <= (SELECT clock_timestamp()));
REVOKE DELETE ON holdfast.timers FROM holdfast_janitor;
DROP POLICY terms_janitor ON holdfast.terms;
DROP POLICY entries_janitor ON holdfast.entries;
DROP POLICY events_janitor ON holdfast.events;
REVOKE ALL ON holdfast.objects, holdfast.terms, holdfast.entries, holdfast.events FROM holdfast_janitor;
GRANT SELECT, DELETE ON holdfast.objects TO holdfast_janitor;
DROP INDEX holdfast.objects_expire_idx;
CREATE INDEX objects_expire_idx ON holdfast.objects (tenant_id, expire_time) WHERE expire_time IS NOT NULL;
