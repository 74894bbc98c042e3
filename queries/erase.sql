-- DeleteKeysOfUser removes a user's API keys.
-- name: DeleteKeysOfUser :execrows
DELETE FROM holdfast.api_keys WHERE tenant_id = @tenant_id::text AND owner_id = @owner_id::text;

-- DeleteExpired deletes some of a tenant's expired objects, and answers which.
-- name: DeleteExpired :many
DELETE FROM holdfast.objects WHERE tenant_id = @tenant_id::text AND ctid = ANY (ARRAY(
  SELECT x.ctid FROM holdfast.objects x WHERE x.tenant_id = @tenant_id AND x.expire_time <= clock_timestamp() LIMIT @batch_size::integer
  FOR UPDATE SKIP LOCKED))
RETURNING kind, object_id;

-- NoteErasure keeps that a user was erased.
-- name: NoteErasure :exec
INSERT INTO holdfast.erasures (tenant_id, user_hash) VALUES (@tenant_id::text, @user_hash::bytea)
ON CONFLICT (tenant_id, user_hash) DO UPDATE SET erase_time = clock_timestamp();

-- ErasedSince answers whether a user was erased at or after a time.
-- name: ErasedSince :one
SELECT EXISTS (SELECT FROM holdfast.erasures
  WHERE tenant_id = @tenant_id::text AND user_hash = @user_hash::bytea AND erase_time >= @since::timestamptz);

-- FindMentioningStates lists the objects of a tenant whose states hold one of some texts, page by page.
-- name: FindMentioningStates :many
SELECT o.kind, o.object_id FROM holdfast.objects o
WHERE o.tenant_id = @tenant_id::text AND (o.kind, o.object_id) > (@after_kind::text, @after_object_id::text)
  AND EXISTS (SELECT FROM (SELECT unnest(@needles::text[]) AS needle) n WHERE strpos(o.state::text, n.needle) > 0)
ORDER BY o.kind, o.object_id
LIMIT @page_size::integer;

-- FindMentioningEntries lists the entries of a tenant that a user owns, that hold one of some texts, or that have the user's id in
-- their keys, page by page. dead: the object is deleted or has expired.
-- name: FindMentioningEntries :many
SELECT e.kind, e.object_id, e.collection, e.key, e.body::text AS body, NOT EXISTS (
    SELECT FROM holdfast.objects o WHERE o.tenant_id = e.tenant_id AND o.kind = e.kind AND o.object_id = e.object_id
      AND NOT o.deleted AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp()) OFFSET 0) AS dead, e.owned, e.owner_id
FROM holdfast.entries e
WHERE e.tenant_id = @tenant_id::text
  AND (e.kind, e.object_id, e.collection, e.key) > (@after_kind::text, @after_object_id::text, @after_collection::text, @after_key::text)
  AND (e.owned AND e.owner_id = @mention::text OR EXISTS (SELECT FROM (SELECT unnest(@needles::text[]) AS needle) n WHERE strpos(e.body::text, n.needle) > 0)
    OR e.key = @mention::text OR @inside::boolean AND strpos(e.key, @mention::text) > 0)
ORDER BY e.kind, e.object_id, e.collection, e.key
LIMIT @page_size::integer;

-- ReplaceEntry replaces an entry of a dead object, without a version.
-- name: ReplaceEntry :exec
UPDATE holdfast.entries SET key = @new_key, body = @body::jsonb
WHERE tenant_id = @tenant_id AND kind = @kind AND object_id = @object_id AND collection = @collection AND key = @key;

-- DeleteEntry deletes an entry of a dead object, without a version.
-- name: DeleteEntry :exec
DELETE FROM holdfast.entries
WHERE tenant_id = @tenant_id AND kind = @kind AND object_id = @object_id AND collection = @collection AND key = @key;

-- CutHistory makes an object's events those of a journal that nothing can be undone by, and takes a user out of them. A
-- retry of a service's request is answered with an empty reply, because a service is told of users' entries too.
-- name: CutHistory :execrows
UPDATE holdfast.events SET undo = '{"cut": true}',
  actor = CASE WHEN actor = @user_id::text THEN @pseudonym::text ELSE actor END,
  reply = CASE WHEN actor IN (@user_id, '') THEN NULL ELSE reply END,
  request_id = CASE WHEN actor = @user_id THEN NULL ELSE request_id END,
  request_key = CASE WHEN actor = @user_id THEN NULL ELSE request_key END,
  request_hash = CASE WHEN actor = @user_id THEN NULL ELSE request_hash END
WHERE tenant_id = @tenant_id AND kind = @kind AND object_id = @object_id;

-- FindMentioningEvents lists the events of a tenant that a user made or that may mention the user, page by page. reply is there
-- only if it holds the id.
-- name: FindMentioningEvents :many
SELECT e.kind, e.object_id, e.version, e.actor, e.undo::text AS undo, e.event_type, coalesce(e.request_id, '')::text AS request_id,
  CASE WHEN @inside::boolean AND position(convert_to(@mention::text, 'UTF8') IN e.reply) > 0 THEN e.reply END::bytea AS reply
FROM holdfast.events e
WHERE e.tenant_id = @tenant_id::text AND (e.kind, e.object_id, e.version) > (@after_kind::text, @after_object_id::text, @after_version::bigint)
  AND (e.actor = @mention::text OR e.request_id = @mention::text
    OR EXISTS (SELECT FROM (SELECT unnest(@needles::text[]) AS needle) n WHERE strpos(e.undo::text, n.needle) > 0)
    OR @inside::boolean AND (strpos(e.request_id, @mention::text) > 0 OR strpos(e.event_type, @mention::text) > 0 OR position(convert_to(@mention::text, 'UTF8') IN e.reply) > 0))
ORDER BY e.kind, e.object_id, e.version
LIMIT @page_size::integer;

-- ScrubEvent takes a user out of an event. Without its request id a retry of the request is not known any more; without
-- its reply it is answered with an empty one.
-- name: ScrubEvent :exec
UPDATE holdfast.events SET actor = @actor, undo = @undo::jsonb,
  event_type = CASE WHEN @drop_type::boolean THEN 'erased' ELSE event_type END,
  reply = CASE WHEN @drop_reply::boolean THEN NULL ELSE reply END,
  request_id = CASE WHEN @drop_request::boolean THEN NULL ELSE request_id END,
  request_key = CASE WHEN @drop_request::boolean THEN NULL ELSE request_key END,
  request_hash = CASE WHEN @drop_request::boolean THEN NULL ELSE request_hash END
WHERE tenant_id = @tenant_id AND kind = @kind AND object_id = @object_id AND version = @version;

-- ScrubTimers forgets what timers failed with where it holds a text.
-- name: ScrubTimers :exec
UPDATE holdfast.timers SET last_error = '' WHERE tenant_id = @tenant_id AND strpos(last_error, @mention::text) > 0;
