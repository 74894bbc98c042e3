-- +goose Up

-- A webhook names its endpoint, and nothing else, before its tenant is known: the authenticator sees which tenant has
-- the endpoint of that id, and of the whole row no more than that. The sync's job asks for all of them: '*', which is no
-- endpoint's id.
CREATE INDEX objects_endpoint_idx ON holdfast.objects (object_id) WHERE kind = 'linear_endpoint';
GRANT SELECT (tenant_id, kind, object_id, deleted) ON holdfast.objects TO holdfast_auth;
CREATE POLICY objects_endpoint_auth ON holdfast.objects FOR SELECT TO holdfast_auth
  USING (kind = 'linear_endpoint' AND (SELECT current_setting('app.endpoint_id', true)) IN (object_id, '*'));

-- found_id finds the id of an object while a read runs, so that "the open tasks of the project that is active" takes no
-- round trip to ask which one that is: p_given, or the first text that is not empty among fields of objects. The caller's
-- row-level security holds; what it hides is not found.
-- +goose StatementBegin
CREATE FUNCTION holdfast.found_id(
  p_tenant_id text,
  p_given text,
  f_kind text[],
  f_id text[],
  f_field text[]
) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  found_id text := p_given;
BEGIN
  FOR i IN 1 .. coalesce(cardinality(f_id), 0) LOOP
    EXIT WHEN found_id <> '';
    SELECT o.state #>> string_to_array(f_field[i], '.') INTO found_id FROM holdfast.objects o
    WHERE o.tenant_id = p_tenant_id AND o.kind = f_kind[i] AND o.object_id = f_id[i]
      AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp());
    found_id := coalesce(found_id, '');
  END LOOP;
  RETURN found_id;
END
$$;
-- +goose StatementEnd

-- found_terms makes the terms that a list goes by out of what found_id finds: the id, or with p_via_fields the elements
-- of those array fields of the object of that id, each behind the prefix of its place and in front of p_suffix. Without
-- an id it is p_otherwise, or nothing.
-- +goose StatementBegin
CREATE FUNCTION holdfast.found_terms(
  p_tenant_id text,
  p_given text,
  f_kind text[],
  f_id text[],
  f_field text[],
  p_via_kind text,
  p_via_fields text[],
  p_prefixes text[],
  p_suffix text,
  p_otherwise text
) RETURNS text[]
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  found_id text := holdfast.found_id(p_tenant_id, p_given, f_kind, f_id, f_field);
  terms text[];
BEGIN
  IF found_id = '' THEN
    RETURN CASE WHEN p_otherwise = '' THEN '{}' ELSE ARRAY[p_otherwise] END;
  END IF;
  IF p_via_kind = '' THEN
    RETURN ARRAY[p_prefixes[1] || found_id || p_suffix];
  END IF;
  SELECT array_agg(p_prefixes[f.n::integer] || e.value || p_suffix) INTO terms
  FROM holdfast.objects o
  CROSS JOIN LATERAL unnest(p_via_fields) WITH ORDINALITY AS f (field, n)
  CROSS JOIN LATERAL jsonb_array_elements_text(coalesce(o.state -> f.field, '[]')) AS e (value)
  WHERE o.tenant_id = p_tenant_id AND o.kind = p_via_kind AND o.object_id = found_id
    AND (o.expire_time IS NULL OR o.expire_time > clock_timestamp());
  RETURN coalesce(terms, '{}');
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION holdfast.found_id, holdfast.found_terms FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.found_id, holdfast.found_terms TO holdfast_app;

-- Typed columns for analysts.
CREATE VIEW holdfast.tasks WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS task_id, owner_id, version, state ->> 'title' AS title,
  state ->> 'project_id' AS project_id, state ->> 'provider' AS provider, state ->> 'run_id' AS run_id,
  state ->> 'status' AS status, state ->> 'raw_status' AS raw_status, state ->> 'linear_issue_id' AS linear_issue_id,
  create_time, update_time
FROM holdfast.objects
WHERE kind = 'task' AND state IS NOT NULL;
CREATE VIEW holdfast.linear_issues WITH (security_invoker = true) AS
SELECT tenant_id, object_id AS issue_id, owner_id, version, state ->> 'identifier' AS identifier,
  state ->> 'title' AS title, coalesce((state ->> 'priority')::integer, 0) AS priority, state ->> 'state_name' AS state_name,
  state ->> 'state_type' AS state_type, state ->> 'team_key' AS team_key, state ->> 'assignee_name' AS assignee_name,
  (state ->> 'update_time')::timestamptz AS linear_update_time, create_time, update_time
FROM holdfast.objects
WHERE kind = 'linear_issue' AND state IS NOT NULL AND NOT state ? 'remove_time';
GRANT SELECT ON holdfast.tasks, holdfast.linear_issues TO holdfast_app;

-- +goose Down
DROP VIEW holdfast.linear_issues;
DROP VIEW holdfast.tasks;
DROP FUNCTION holdfast.found_terms;
DROP FUNCTION holdfast.found_id;
DROP POLICY objects_endpoint_auth ON holdfast.objects;
REVOKE SELECT (tenant_id, kind, object_id, deleted) ON holdfast.objects FROM holdfast_auth;
DROP INDEX holdfast.objects_endpoint_idx;
