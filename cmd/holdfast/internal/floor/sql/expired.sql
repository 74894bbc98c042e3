-- :objects expired objects for a sweep to delete, with two terms, five messages and five events each. Straight into the tables,
-- because the API makes nothing that expires within a day.
INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time,
  update_time, activity_time, expire_time)
SELECT 'bench', 'conversation', 'expired-' || i, 'u' || i % 1000, 4, 5, 1, '{"title": "Auth refactor", "last_seq": "5", "token_count": "125"}',
  t, t, t, t + interval '30 days'
FROM generate_series(1, :objects) AS i, LATERAL (SELECT clock_timestamp() - interval '31 days' + i * interval '1 millisecond' AS t) AS n;
INSERT INTO holdfast.terms (tenant_id, kind, object_id, term, owner_id, activity_time)
SELECT 'bench', 'conversation', 'expired-' || i, 'bench/conversation/' || n, 'u' || i % 1000, now() - interval '31 days'
FROM generate_series(1, :objects) AS i, generate_series(1, 2) AS n;
INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
SELECT 'bench', 'conversation', 'expired-' || i, 'messages', lpad(n::text, 12, '0'), 'u' || i % 1000, n, jsonb_build_object('seq', n::text,
  'role', 'ROLE_USER', 'modality', 'MODALITY_TEXT', 'status', 'MESSAGE_STATUS_COMPLETE', 'text', repeat('x', 100), 'token_count', '25')
FROM generate_series(1, :objects) AS i, generate_series(1, 5) AS n;
INSERT INTO holdfast.events (tenant_id, kind, object_id, version, owner_id, event_type, actor, event_time, request_id, request_key,
  request_hash, reply, undo)
SELECT 'bench', 'conversation', 'expired-' || i, n, 'u' || i % 1000, 'messages_appended', 'u' || i % 1000, now() - interval '31 days',
  'r' || n, decode(md5(i || '/' || n), 'hex'), sha256(convert_to(i || '/' || n, 'UTF8')), convert_to(repeat('x', 150), 'UTF8'),
  '{"state": {"last_seq": "4", "token_count": "100"}, "entries": [["messages", "000000000005", null]]}'
FROM generate_series(1, :objects) AS i, generate_series(1, 5) AS n;
