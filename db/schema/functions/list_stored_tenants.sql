-- list_stored_tenants lists the tenants that have events, sleepers or usage, by one probe of an index each. A tenant whose rows are
-- all gone has to be recounted as well, hence usage.
CREATE OR REPLACE FUNCTION holdfast.list_stored_tenants() RETURNS SETOF text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  t text := '';
BEGIN
  LOOP
    t := least(
      (SELECT e.tenant_id FROM holdfast.events e WHERE e.tenant_id > t ORDER BY e.tenant_id LIMIT 1),
      (SELECT s.tenant_id FROM holdfast.sleepers s WHERE s.tenant_id > t ORDER BY s.tenant_id LIMIT 1),
      (SELECT u.tenant_id FROM holdfast.usage u WHERE u.tenant_id > t ORDER BY u.tenant_id LIMIT 1));
    EXIT WHEN t IS NULL;
    RETURN NEXT t;
  END LOOP;
END
$$;

REVOKE ALL ON FUNCTION holdfast.list_stored_tenants FROM PUBLIC;
GRANT EXECUTE ON FUNCTION holdfast.list_stored_tenants TO holdfast_janitor;
