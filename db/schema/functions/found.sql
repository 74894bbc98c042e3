-- found_id finds the id of an object while a read runs, so that "the open tasks of the project that is active" takes no
-- round trip to ask which one that is: p_given, or the first text that is not empty among fields of objects. The caller's
-- row-level security holds; what it hides is not found.
CREATE OR REPLACE FUNCTION holdfast.found_id(
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

-- found_terms makes the terms that a list goes by out of what found_id finds: the id, or with p_via_fields the elements
-- of those array fields of the object of that id, each behind the prefix of its place and in front of p_suffix. Without
-- an id it is p_otherwise, or nothing.
CREATE OR REPLACE FUNCTION holdfast.found_terms(
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

REVOKE ALL ON FUNCTION holdfast.found_id, holdfast.found_terms FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.found_id, holdfast.found_terms TO holdfast_app;
