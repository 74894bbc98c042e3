-- The tables, views, roles and row-level security of Holdfast. Functions are in functions/. From the first release on this
-- file stays as it is, and further ones add to it.

-- Roles belong to the cluster, not to the database: another database of the cluster, or a migration that runs in one at this
-- moment, may have made them. Nobody logs in as any of them: the server's login is granted them, and each of its transactions
-- enters one.
DO $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['holdfast_app', 'holdfast_auth', 'holdfast_verify', 'holdfast_janitor', 'holdfast_operator'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT NOBYPASSRLS', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
  END LOOP;
END
$$;

CREATE SCHEMA holdfast;
GRANT USAGE ON SCHEMA holdfast TO holdfast_app, holdfast_auth, holdfast_verify, holdfast_janitor, holdfast_operator;

-- The job queue's tables are made by River's own migrations. They have a schema of their own, because no row in them belongs
-- to a tenant: a job says which object to look at, never what is in it.
CREATE SCHEMA holdfast_jobs;

CREATE TABLE holdfast.tenants (
  tenant_id   text COLLATE "C" NOT NULL,
  owner_id    text COLLATE "C" NOT NULL DEFAULT '',
  title       text NOT NULL DEFAULT '',
  create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
  CONSTRAINT tenants_tenant_id_check CHECK (tenant_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  CONSTRAINT tenants_owner_id_check CHECK (owner_id = '')
);

CREATE TABLE holdfast.api_keys (
  tenant_id   text COLLATE "C" NOT NULL,
  key_id      text COLLATE "C" NOT NULL,
  -- The user that a key of role 'user' acts as; empty for a service key.
  owner_id    text COLLATE "C" NOT NULL,
  role        text NOT NULL,
  secret_hash bytea NOT NULL,
  description text NOT NULL DEFAULT '',
  create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  revoke_time timestamptz,
  CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, key_id),
  CONSTRAINT api_keys_role_check CHECK (role = 'service' AND owner_id = '' OR role = 'user' AND owner_id <> ''),
  CONSTRAINT api_keys_secret_hash_check CHECK (octet_length(secret_hash) = 32)
);
-- A credential names its key before its tenant is known. The index is not unique, because uniqueness never crosses tenants.
CREATE INDEX api_keys_key_id_idx ON holdfast.api_keys (key_id);

-- Ordinary updates stay HOT: the fillfactor leaves room for them, and no index has a column that they change, because
-- activity_time and expire_time move in coarse steps.
CREATE TABLE holdfast.objects (
  tenant_id      text COLLATE "C" NOT NULL,
  kind           text COLLATE "C" NOT NULL,
  object_id      text COLLATE "C" NOT NULL,
  owner_id       text COLLATE "C" NOT NULL,
  -- The version that the last batch of changes built on; store_changes compares it with the stored version.
  base_version   bigint NOT NULL,
  version        bigint NOT NULL,
  schema_version integer NOT NULL,
  -- NULL: deleted. The row stays until it expires, so that the version keeps counting and a retry gets its reply.
  state          jsonb,
  deleted        boolean NOT NULL DEFAULT false,
  create_time    timestamptz NOT NULL,
  update_time    timestamptz NOT NULL,
  activity_time  timestamptz NOT NULL,
  expire_time    timestamptz,
  -- {name: due time}; NULL: none. They are in this row as well as in holdfast.timers, so that the version that fences the
  -- state fences the timers too.
  timers         jsonb,
  -- Its entries and events are in sleepers. wake_time is when it last woke.
  asleep         boolean NOT NULL DEFAULT false,
  wake_time      timestamptz,
  CONSTRAINT objects_pkey PRIMARY KEY (tenant_id, kind, object_id),
  -- One constraint, because Postgres parses each of them for each statement: four took a twelfth of a write.
  CONSTRAINT objects_state_check CHECK (CASE WHEN deleted THEN state IS NULL ELSE jsonb_typeof(state) = 'object' END IS TRUE)
) WITH (fillfactor = 80);
-- Lists: the newest activity of a kind. On a table without statistics the planner takes an index that begins with
-- (tenant_id, kind) to be as cheap as the primary key; it took this one for lookups by id, and read the tenant's whole kind.
-- It does not take a partial index for a query that does not repeat the condition, which only lists do. (A condition on
-- state would keep all updates from being HOT.)
CREATE INDEX objects_activity_idx ON holdfast.objects (tenant_id, kind, activity_time DESC, object_id DESC)
  WHERE NOT deleted;
-- Lists of one user's objects, in a tenant of many users. It is partial for the same reason.
CREATE INDEX objects_owner_idx ON holdfast.objects (tenant_id, owner_id, kind, activity_time DESC, object_id DESC)
  WHERE NOT deleted AND owner_id <> '';
-- The sweep goes by the time of expiry, across tenants.
CREATE INDEX objects_expire_idx ON holdfast.objects (expire_time) WHERE expire_time IS NOT NULL;
-- Webhooks and session tokens name an object before its tenant is known.
CREATE INDEX objects_endpoint_idx ON holdfast.objects (object_id) WHERE kind = 'linear_endpoint';
CREATE INDEX objects_sessions_idx ON holdfast.objects (object_id) WHERE kind = 'user_sessions';

-- The terms by which lists filter, one row each. A GIN index over an array column would be smaller, but row-level security
-- keeps it from being used: only leakproof operators pass a policy, and containment is not one.
CREATE TABLE holdfast.terms (
  tenant_id     text COLLATE "C" NOT NULL,
  kind          text COLLATE "C" NOT NULL,
  object_id     text COLLATE "C" NOT NULL,
  -- "<tenant_id>/<kind>/<term>", so that the index below cannot be taken for lookups by object; see objects_activity_idx.
  term          text COLLATE "C" NOT NULL,
  owner_id      text COLLATE "C" NOT NULL,
  activity_time timestamptz NOT NULL,
  CONSTRAINT terms_pkey PRIMARY KEY (tenant_id, kind, object_id, term)
);
-- tenant_id is last because row-level security asks for it: without it a table that was never analysed was read by the
-- primary key, all of the tenant's terms, and sorted.
CREATE INDEX terms_activity_idx ON holdfast.terms (term, activity_time DESC, object_id DESC, tenant_id);

CREATE TABLE holdfast.entries (
  tenant_id  text COLLATE "C" NOT NULL,
  kind       text COLLATE "C" NOT NULL,
  object_id  text COLLATE "C" NOT NULL,
  collection text COLLATE "C" NOT NULL,
  key        text COLLATE "C" NOT NULL,
  owner_id   text COLLATE "C" NOT NULL,
  -- The object's version that wrote it last.
  version    bigint NOT NULL,
  body       jsonb NOT NULL,
  -- The entry belongs to owner_id alone, not to the object's owner; without an owner it is for services.
  owned      boolean NOT NULL DEFAULT false,
  CONSTRAINT entries_pkey PRIMARY KEY (tenant_id, kind, object_id, collection, key),
  CONSTRAINT entries_body_check CHECK (jsonb_typeof(body) = 'object')
);
-- One user's entries in a collection of many users.
CREATE INDEX entries_owner_idx ON holdfast.entries (tenant_id, owner_id, kind, object_id, collection, key) WHERE owned;

CREATE TABLE holdfast.events (
  tenant_id    text COLLATE "C" NOT NULL,
  kind         text COLLATE "C" NOT NULL,
  object_id    text COLLATE "C" NOT NULL,
  version      bigint NOT NULL,
  owner_id     text COLLATE "C" NOT NULL,
  event_type   text NOT NULL,
  -- The user who made the change; empty: a service on its own behalf.
  actor        text NOT NULL,
  event_time   timestamptz NOT NULL,
  request_id   text COLLATE "C",
  -- Half of the SHA-256 of kind, object and request id. The lookup goes by it and names neither kind nor object, so that the
  -- planner cannot take the primary key and read the object's whole journal.
  request_key  bytea,
  -- SHA-256 of the request, which tells a retry from another request with the same id.
  request_hash bytea,
  -- The first reply, as it was sent.
  reply        bytea,
  -- What the change replaced: {"state": {field: old}, "entries": [[collection, key, old, owner]]}; null: was not there. See object/internal/journal.
  undo         jsonb NOT NULL,
  CONSTRAINT events_pkey PRIMARY KEY (tenant_id, kind, object_id, version),
  CONSTRAINT events_undo_check CHECK (jsonb_typeof(undo) = 'object')
);
CREATE UNIQUE INDEX events_request_key ON holdfast.events (tenant_id, request_key) WHERE request_key IS NOT NULL;

-- The timers of all objects, by when to run them. Claiming a timer is a HOT update: lease_time is in no index.
CREATE TABLE holdfast.timers (
  tenant_id  text COLLATE "C" NOT NULL,
  kind       text COLLATE "C" NOT NULL,
  object_id  text COLLATE "C" NOT NULL,
  name       text COLLATE "C" NOT NULL,
  owner_id   text COLLATE "C" NOT NULL,
  -- As the object set it.
  due_time   timestamptz NOT NULL,
  -- When to try next: later than due_time once a try has failed.
  next_time  timestamptz NOT NULL,
  -- Until then a process is running it.
  lease_time timestamptz,
  -- How many tries have failed, and the error of the last one.
  attempts   integer NOT NULL DEFAULT 0,
  last_error text NOT NULL DEFAULT '',
  -- No longer tried.
  parked     boolean NOT NULL DEFAULT false,
  CONSTRAINT timers_pkey PRIMARY KEY (tenant_id, kind, object_id, name)
) WITH (fillfactor = 80);
CREATE INDEX timers_next_idx ON holdfast.timers (kind, next_time) WHERE NOT parked;
CREATE INDEX timers_parked_idx ON holdfast.timers (tenant_id) WHERE parked;

-- A row says that a user was erased, and not who it was: only who knows the id can look for its hash.
CREATE TABLE holdfast.erasures (
  tenant_id   text COLLATE "C" NOT NULL,
  -- SHA-256 of tenant, NUL and user.
  user_hash   bytea NOT NULL,
  owner_id    text COLLATE "C" NOT NULL DEFAULT '',
  -- Of the newest erasure.
  erase_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT erasures_pkey PRIMARY KEY (tenant_id, user_hash)
);

-- What is stored for each user, and for each tenant as a whole, which is the row without an owner. Servers count in memory and
-- add the sums every second or so. A total may lag, and a crash may lose a second of it: a daily recount corrects it.
-- Totals of 0 have no row.
CREATE TABLE holdfast.usage (
  tenant_id text COLLATE "C" NOT NULL,
  owner_id  text COLLATE "C" NOT NULL,
  objects   bigint NOT NULL,
  bytes     bigint NOT NULL,
  CONSTRAINT usage_pkey PRIMARY KEY (tenant_id, owner_id)
) WITH (fillfactor = 50);
-- Each scrape looks for the fullest tenants, among many users.
CREATE INDEX usage_tenants_idx ON holdfast.usage (tenant_id) WHERE owner_id = '';

-- Sleepers: the entries and events of an object that has rested long enough, as one row each. The object's own row stays as it
-- was, so lists and reads of state cost what they did. See docs/adr/0009-objects-sleep.md.
CREATE TABLE holdfast.sleepers (
  tenant_id  text COLLATE "C" NOT NULL,
  kind       text COLLATE "C" NOT NULL,
  object_id  text COLLATE "C" NOT NULL,
  -- The table that the rows are of.
  part       text COLLATE "C" NOT NULL,
  owner_id   text COLLATE "C" NOT NULL,
  row_count  bigint NOT NULL,
  -- What the rows take when the object is awake, as quotas count it.
  bytes      bigint NOT NULL,
  -- Of the newest event; NULL: entries have none.
  last_time  timestamptz,
  -- The rows, as lines of an export.
  compressed bytea NOT NULL,
  CONSTRAINT sleepers_pkey PRIMARY KEY (tenant_id, kind, object_id, part),
  CONSTRAINT sleepers_part_check CHECK (part IN ('entries', 'events'))
);
-- Journals that are too old go by it.
CREATE INDEX sleepers_last_time_idx ON holdfast.sleepers (last_time) WHERE last_time IS NOT NULL;
ALTER TABLE holdfast.sleepers ALTER COLUMN compressed SET STORAGE EXTERNAL; -- it is compressed already

-- Values of more than about 2 KB are compressed by lz4 where the server was built with it: states of 50 KB took a twentieth
-- less than by the default, in half the time.
DO $$
BEGIN
  ALTER TABLE holdfast.objects ALTER COLUMN state SET COMPRESSION lz4;
  ALTER TABLE holdfast.entries ALTER COLUMN body SET COMPRESSION lz4;
  ALTER TABLE holdfast.events ALTER COLUMN undo SET COMPRESSION lz4, ALTER COLUMN reply SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  RAISE NOTICE 'this Postgres has no lz4; values are compressed by its default';
END
$$;

-- Autovacuum waits for a fifth of a table to be dead, which on a large one is days of garbage and a vacuum of hours.
-- Objects and terms are updated in place all the time, and a sweep leaves many dead rows in all of them at once.
ALTER TABLE holdfast.objects SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE holdfast.terms SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
-- Entries and events are almost only inserted: the vacuum for insertions marks pages as all-visible and frozen, so that a
-- later one skips them. Small and often instead of all at once.
ALTER TABLE holdfast.entries SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE holdfast.events SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05);

-- Typed columns for analysts. security_invoker keeps the caller's row-level security.
CREATE VIEW holdfast.conversations WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, owner_id, version, state ->> 'title' AS title,
  state ->> 'project_id' AS project_id, state -> 'labels' AS labels,
  coalesce((state ->> 'last_seq')::bigint, 0) AS message_count,
  coalesce((state ->> 'token_count')::bigint, 0) AS token_count,
  create_time, update_time, expire_time
FROM holdfast.objects
WHERE kind = 'conversation' AND state IS NOT NULL;
CREATE VIEW holdfast.messages WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS conversation_id, (body ->> 'seq')::bigint AS seq, owner_id, body ->> 'role' AS role,
  body ->> 'modality' AS modality, body ->> 'status' AS status, body ->> 'text' AS text,
  coalesce((body ->> 'token_count')::bigint, 0) AS token_count, (body ->> 'create_time')::timestamptz AS create_time
FROM holdfast.entries
WHERE kind = 'conversation' AND collection = 'messages';
CREATE VIEW holdfast.tasks WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS task_id, owner_id, version, state ->> 'title' AS title,
  state ->> 'project_id' AS project_id, state ->> 'provider' AS provider, state ->> 'run_id' AS run_id,
  state ->> 'status' AS status, state ->> 'raw_status' AS raw_status, state -> 'issue' ->> 'id' AS issue_id,
  create_time, update_time
FROM holdfast.objects
WHERE kind = 'task' AND state IS NOT NULL;
CREATE VIEW holdfast.linear_issues WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS issue_id, owner_id, version, state ->> 'identifier' AS identifier,
  state ->> 'title' AS title, coalesce((state ->> 'priority')::integer, 0) AS priority, state -> 'state' ->> 'name' AS state_name,
  state -> 'state' ->> 'type' AS state_type, state -> 'team' ->> 'key' AS team_key, state -> 'assignee' ->> 'name' AS assignee_name,
  (state ->> 'linear_update_time')::timestamptz AS linear_update_time, create_time, update_time
FROM holdfast.objects
WHERE kind = 'linear_issue' AND state IS NOT NULL AND NOT state ? 'remove_time';

-- Row-level security. Settings are wrapped in SELECT, so that they are read once a statement and not once a row.
DO $$
DECLARE
  t text;
BEGIN
  FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'holdfast'::regnamespace AND relkind = 'r' LOOP
    EXECUTE format('ALTER TABLE holdfast.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE holdfast.%I FORCE ROW LEVEL SECURITY', t);
  END LOOP;

  -- holdfast_app sees the rows of its tenant that are shared, or belong to one of its callers; a service sees all of them.
  FOREACH t IN ARRAY ARRAY['objects', 'terms', 'entries', 'events', 'timers', 'sleepers'] LOOP
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.%I TO holdfast_app', t);
    EXECUTE format($policy$
      CREATE POLICY %I ON holdfast.%I TO holdfast_app USING (
        tenant_id = (SELECT current_setting('app.tenant', true))
        AND ((SELECT current_setting('app.service', true)) = 'on'
          OR owner_id = '' %s
          OR owner_id = ANY ((SELECT current_setting('app.owners', true)::text[])::text[])))
      $policy$, t || '_app', t, CASE t WHEN 'entries' THEN 'AND NOT owned' ELSE '' END);
  END LOOP;

  -- holdfast_janitor deletes the rows of objects that have expired. It may not read what is in them: of each table it sees the
  -- columns that name a row. OFFSET 0 keeps the planner from hashing all expired objects to look at the entries of one.
  FOREACH t IN ARRAY ARRAY['terms', 'entries', 'events', 'sleepers'] LOOP
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

GRANT SELECT ON holdfast.conversations, holdfast.messages, holdfast.tasks, holdfast.linear_issues
  TO holdfast_app;
GRANT SELECT, INSERT, UPDATE ON holdfast.erasures TO holdfast_app;
CREATE POLICY erasures_app ON holdfast.erasures TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on');
-- A recount and an erasure act for one tenant.
GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.usage TO holdfast_app;
CREATE POLICY usage_app ON holdfast.usage TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on');
-- Erasing a user deletes the user's keys. The policy hides service keys, and no right lets it make one.
GRANT SELECT (tenant_id, owner_id), DELETE ON holdfast.api_keys TO holdfast_app;
CREATE POLICY api_keys_app ON holdfast.api_keys TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on'
    AND owner_id <> '');

-- holdfast_auth does not know the tenant until the key is found: it sees the one key that the credential names.
GRANT SELECT ON holdfast.api_keys TO holdfast_auth;
CREATE POLICY api_keys_auth ON holdfast.api_keys FOR SELECT TO holdfast_auth
  USING (key_id = (SELECT current_setting('app.key_id', true)));
-- A webhook names its endpoint, and nothing else, before its tenant is known: holdfast_auth sees which tenant has the endpoint
-- of that id, and no more of the row. The sync's job asks for all of them by '*', which is not the id of an endpoint.
GRANT SELECT (tenant_id, kind, object_id, deleted) ON holdfast.objects TO holdfast_auth;
CREATE POLICY objects_endpoint_auth ON holdfast.objects FOR SELECT TO holdfast_auth
  USING (kind = 'linear_endpoint' AND (SELECT current_setting('app.endpoint_id', true)) IN (object_id, '*'));

-- A session's token names its user's object before the tenant is known. Sessions have states, which holdfast_auth has no
-- business with, so a role of its own verifies them: it sees the sessions of the users whom credentials name. A setting that was
-- never set is NULL, and one that was set in an earlier transaction is empty.
GRANT SELECT (tenant_id, kind, object_id, owner_id, state, expire_time) ON holdfast.objects TO holdfast_verify;
CREATE POLICY objects_verify ON holdfast.objects FOR SELECT TO holdfast_verify
  USING (kind = 'user_sessions'
    AND object_id = ANY ((SELECT nullif(current_setting('app.session_objects', true), '')::text[])::text[]));
-- Open streams are verified again, many keys at once.
GRANT SELECT ON holdfast.api_keys TO holdfast_verify;
CREATE POLICY api_keys_verify ON holdfast.api_keys FOR SELECT TO holdfast_verify
  USING (key_id = ANY ((SELECT nullif(current_setting('app.key_ids', true), '')::text[])::text[]));

-- The janitor sees objects that have expired. FOR UPDATE needs UPDATE of one column.
GRANT SELECT (tenant_id, kind, object_id, owner_id, expire_time), UPDATE (base_version), DELETE ON holdfast.objects
  TO holdfast_janitor;
CREATE POLICY objects_janitor ON holdfast.objects TO holdfast_janitor
  USING (expire_time <= (SELECT clock_timestamp()));
-- It claims timers that are due, of every tenant. This is one policy instead of two, because Postgres would choose their order:
-- a timer that is due is visible without a look at its object.
GRANT SELECT, UPDATE (lease_time), DELETE ON holdfast.timers TO holdfast_janitor;
CREATE POLICY timers_janitor ON holdfast.timers TO holdfast_janitor USING (
  NOT parked AND next_time <= (SELECT clock_timestamp()) OR EXISTS (
    SELECT FROM holdfast.objects o
    WHERE o.tenant_id = timers.tenant_id AND o.kind = timers.kind AND o.object_id = timers.object_id
      AND o.expire_time <= (SELECT clock_timestamp())
    OFFSET 0));
-- It counts parked timers for the operator. There are few of them.
CREATE POLICY timers_janitor_parked ON holdfast.timers FOR SELECT TO holdfast_janitor USING (parked);
-- Of the journal it sees when each object's events were, and deletes those that are older than the least retention, which is
-- a day.
GRANT SELECT (version, event_time) ON holdfast.events TO holdfast_janitor;
CREATE POLICY events_janitor_walk ON holdfast.events FOR SELECT TO holdfast_janitor USING (true);
CREATE POLICY events_janitor_trim ON holdfast.events FOR DELETE TO holdfast_janitor
  USING (event_time <= (SELECT clock_timestamp() - interval '24 hours'));
-- It counts what it deletes with a sleeper, and sees which tenants have sleepers: a tenant need not be in holdfast.tenants.
GRANT SELECT (part, row_count, last_time) ON holdfast.sleepers TO holdfast_janitor;
CREATE POLICY sleepers_janitor_trim ON holdfast.sleepers FOR DELETE TO holdfast_janitor
  USING (last_time <= (SELECT clock_timestamp() - interval '24 hours'));
CREATE POLICY sleepers_janitor_walk ON holdfast.sleepers FOR SELECT TO holdfast_janitor USING (true);
-- It goes from tenant to tenant, and adds to the usage of all of them in one statement: numbers, and nothing that is in an
-- object.
GRANT SELECT (tenant_id) ON holdfast.tenants TO holdfast_janitor;
CREATE POLICY tenants_janitor ON holdfast.tenants FOR SELECT TO holdfast_janitor USING (true);
GRANT SELECT, INSERT, UPDATE ON holdfast.usage TO holdfast_janitor;
CREATE POLICY usage_janitor ON holdfast.usage TO holdfast_janitor USING (true);
-- What was counted of an erased user is not added.
GRANT SELECT (tenant_id, user_hash, erase_time) ON holdfast.erasures TO holdfast_janitor;
CREATE POLICY erasures_janitor ON holdfast.erasures FOR SELECT TO holdfast_janitor USING (true);

-- holdfast_operator makes tenants and keys, and sees no object. The server's login does not get it. The database's owner does,
-- because forced row-level security binds an owner who is not a superuser.
GRANT SELECT, INSERT, UPDATE ON holdfast.tenants, holdfast.api_keys TO holdfast_operator;
CREATE POLICY tenants_operator ON holdfast.tenants TO holdfast_operator USING (true);
CREATE POLICY api_keys_operator ON holdfast.api_keys TO holdfast_operator USING (true);
