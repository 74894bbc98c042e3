-- The tables of the floor: the least that can hold what Holdfast holds, without tenants, owners, journal or policies.
-- 1,000 objects with 20 entries each.
DROP SCHEMA IF EXISTS bench_floor CASCADE;
CREATE SCHEMA bench_floor;

CREATE TABLE bench_floor.commits (
  id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  body text NOT NULL
);
CREATE TABLE bench_floor.objects (
  object_id text COLLATE "C" PRIMARY KEY,
  version   bigint NOT NULL,
  state     jsonb NOT NULL
) WITH (fillfactor = 80);
CREATE TABLE bench_floor.entries (
  object_id  text COLLATE "C",
  collection text COLLATE "C",
  key        text COLLATE "C",
  body       jsonb NOT NULL,
  PRIMARY KEY (object_id, collection, key)
);

-- Lock, update and insert as one request does them when each has a transaction of its own. The statements of a
-- function see what the lock before them waited for.
CREATE FUNCTION bench_floor.append(p_object_id text, p_text text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(p_object_id, 0));
  UPDATE bench_floor.objects SET version = version + 1, state = jsonb_set(state, '{last_seq}', to_jsonb(version + 1))
  WHERE object_id = p_object_id
  RETURNING version INTO n;
  INSERT INTO bench_floor.entries (object_id, collection, key, body)
  VALUES (p_object_id, 'messages', lpad(n::text, 12, '0'), jsonb_build_object('seq', n, 'role', 'ROLE_USER', 'text', p_text));
  RETURN n;
END
$$;

INSERT INTO bench_floor.objects
SELECT 'o' || i, 20, '{"title": "", "last_seq": 20, "token_count": 500}' FROM generate_series(1, 1000) AS i;
INSERT INTO bench_floor.entries
SELECT 'o' || i, 'messages', lpad(n::text, 12, '0'), jsonb_build_object('seq', n, 'role', 'ROLE_USER', 'modality', 'MODALITY_TEXT',
  'status', 'MESSAGE_STATUS_COMPLETE', 'text', repeat('x', 100), 'token_count', 25, 'token_count_estimated', true,
  'create_time', clock_timestamp(), 'update_time', clock_timestamp())
FROM generate_series(1, 1000) AS i, generate_series(1, 20) AS n;
ANALYZE bench_floor.objects, bench_floor.entries;
