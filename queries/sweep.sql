-- SweepGently is for transactions whose loss in a crash does no harm, because what they deleted is deleted again: their
-- commit does not wait for the disk, where writers wait.
-- name: SweepGently :exec
SELECT set_config('synchronous_commit', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true);

-- SweepExpired deletes a batch of expired objects; see the function.
-- name: SweepExpired :one
SELECT s.last_time::timestamptz AS last_time, s.objects::bigint AS objects, s.terms::bigint AS terms,
  s.entries::bigint AS entries, s.events::bigint AS events, s.timers::bigint AS timers
FROM holdfast.sweep_expired(@after::timestamptz, @batch_size::integer) s;

-- TrimJournal deletes old events, from object to object; see the function.
-- name: TrimJournal :one
SELECT t.at_tenant_id::text AS at_tenant_id, t.at_kind::text AS at_kind, t.at_object_id::text AS at_object_id,
  t.objects::bigint AS objects, t.events::bigint AS events, t.done::boolean AS done
FROM holdfast.trim_journal(clock_timestamp() - make_interval(secs => @retention_seconds::double precision), @brief_kinds::text[], @max_objects::integer,
  @max_events::integer, @after_tenant_id::text, @after_kind::text, @after_object_id::text) t;
