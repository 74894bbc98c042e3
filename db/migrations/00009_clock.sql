-- +goose Up

-- What a server computes before its only round trip, under the locks that store_changes takes for it, it computes by an estimate
-- of this clock. Where one of the two was set meanwhile, the change must not store times that are wrong, or end what has not
-- expired: it is refused as if another had come before it, and the server computes it again by this clock. (Twenty seconds are
-- more than a change waits for its locks, or a process's estimate may be ahead of another's.)
-- +goose StatementBegin
DO $$
DECLARE
  f oid;
  was text;
  now text;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    was := pg_get_functiondef(f);
    now := replace(was, E'  PERFORM count(pg_advisory_xact_lock(k)) FROM unnest(p_locks) AS k;\n',
      E'  PERFORM count(pg_advisory_xact_lock(k)) FROM unnest(p_locks) AS k;\n'
      '  IF p_locks IS NOT NULL AND abs(extract(epoch FROM clock_timestamp() - o_update_time[1])) > 20 THEN\n'
      '    RAISE EXCEPTION ''computed as of %, which is not now'', o_update_time[1] USING ERRCODE = ''HF001'';\n'
      '  END IF;\n');
    ASSERT was <> now, 'the locks of store_changes are not where they were';
    EXECUTE now;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
  f oid;
BEGIN
  FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND proname = 'store_changes' LOOP
    EXECUTE regexp_replace(pg_get_functiondef(f), E'  IF p_locks IS NOT NULL AND abs.*?  END IF;\n', '');
  END LOOP;
END
$$;
-- +goose StatementEnd
