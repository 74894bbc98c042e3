-- :objects copies of the conversation :template, each with :messages messages, as so many appends through the API would have
-- left them: straight into the tables, because the API would take an hour. The template has two messages, appended one
-- after the other. The n-th message of a copy has the text of the template's first one with n - 1 in place of its number.
-- A thousand conversations go on at the same time, so that the messages of each lie apart, as they do where people talk.
INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time,
  update_time, activity_time, expire_time, timers)
SELECT o.tenant_id, o.kind, :prefix || i, o.owner_id, :messages, :messages + 1, o.schema_version,
  o.state || jsonb_build_object('last_seq', :messages::text, 'token_count', (:messages * (o.state ->> 'token_count')::bigint / 2)::text),
  o.create_time - i * interval '1 millisecond', o.update_time - i * interval '1 millisecond', o.activity_time - i * interval '1 millisecond',
  o.expire_time - i * interval '1 millisecond', o.timers
FROM holdfast.objects o, generate_series(1, :objects) AS i
WHERE o.kind = 'conversation' AND o.object_id = :template;

INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
SELECT e.tenant_id, e.kind, :prefix || s.i, e.collection, lpad(s.n::text, 12, '0'), e.owner_id, s.n + 1,
  e.body || jsonb_build_object('seq', s.n::text, 'text',
    left(p.parts[1] || (s.n - 1) || p.parts[2], length(e.body ->> 'text')))
FROM holdfast.entries e
CROSS JOIN LATERAL (SELECT regexp_match(e.body ->> 'text', '^(w\d+ m)0( .*)$') AS parts OFFSET 0) p
CROSS JOIN (
  SELECT i, n FROM generate_series(1, :objects) AS i, generate_series(1, :messages) AS n ORDER BY i / 1000, n, i OFFSET 0
) s
WHERE e.kind = 'conversation' AND e.object_id = :template AND e.key = '000000000001';

INSERT INTO holdfast.events (tenant_id, kind, object_id, version, owner_id, event_type, actor, event_time, request_id, request_key,
  request_hash, reply, undo)
SELECT e.tenant_id, e.kind, :prefix || s.i, s.n + 1, e.owner_id, e.event_type, e.actor, e.event_time, e.request_id, e.request_key,
  e.request_hash, e.reply,
  CASE WHEN s.n < 2 THEN e.undo ELSE jsonb_build_object(
    'state', jsonb_build_object('last_seq', (s.n - 1)::text, 'token_count', ((s.n - 1) * (e.undo #>> '{state,token_count}')::bigint)::text),
    'entries', jsonb_build_array(jsonb_build_array('messages', lpad(s.n::text, 12, '0'), NULL))) END
FROM (
  SELECT i, n FROM generate_series(1, :objects) AS i, generate_series(0, :messages) AS n ORDER BY i / 1000, n, i OFFSET 0
) s
JOIN holdfast.events e ON e.version = least(s.n + 1, 3)
WHERE e.kind = 'conversation' AND e.object_id = :template;
