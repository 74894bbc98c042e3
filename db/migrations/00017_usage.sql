-- +goose Up

-- What is stored for each user, and for each tenant as a whole, which is the row of no owner. Servers count in memory and add what
-- came together every second or so, so a total may lag, and a crash may lose a second of it: a daily recount puts it right. No row
-- is a total of 0.
CREATE TABLE holdfast.usage (
  tenant_id text COLLATE "C" NOT NULL,
  owner_id  text COLLATE "C" NOT NULL,
  objects   bigint NOT NULL,
  bytes     bigint NOT NULL,
  CONSTRAINT usage_pkey PRIMARY KEY (tenant_id, owner_id)
) WITH (fillfactor = 50);
-- The fullest tenants are looked for at each scrape, among many users.
CREATE INDEX usage_tenants_idx ON holdfast.usage (tenant_id) WHERE owner_id = '';
ALTER TABLE holdfast.usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE holdfast.usage FORCE ROW LEVEL SECURITY;

-- A recount and an erasure act for one tenant.
GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.usage TO holdfast_app;
CREATE POLICY usage_app ON holdfast.usage TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on');
-- One statement adds what a server has counted, whatever the number of tenants. It is numbers, and nothing that is in an object.
GRANT SELECT, INSERT, UPDATE ON holdfast.usage TO holdfast_janitor;
CREATE POLICY usage_janitor ON holdfast.usage TO holdfast_janitor USING (true);

-- A tenant whose rows are all gone has to be recounted as well.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION holdfast.list_stored_tenants() RETURNS SETOF text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  t text := '';
BEGIN
  LOOP
    t := least(
      (SELECT e.tenant_id FROM holdfast.events e WHERE e.tenant_id > t ORDER BY e.tenant_id LIMIT 1),
      (SELECT p.tenant_id FROM holdfast.packs p WHERE p.tenant_id > t ORDER BY p.tenant_id LIMIT 1),
      (SELECT u.tenant_id FROM holdfast.usage u WHERE u.tenant_id > t ORDER BY u.tenant_id LIMIT 1));
    EXIT WHEN t IS NULL;
    RETURN NEXT t;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION holdfast.list_stored_tenants() RETURNS SETOF text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  t text := '';
BEGIN
  LOOP
    t := least(
      (SELECT e.tenant_id FROM holdfast.events e WHERE e.tenant_id > t ORDER BY e.tenant_id LIMIT 1),
      (SELECT p.tenant_id FROM holdfast.packs p WHERE p.tenant_id > t ORDER BY p.tenant_id LIMIT 1));
    EXIT WHEN t IS NULL;
    RETURN NEXT t;
  END LOOP;
END
$$;
-- +goose StatementEnd
DROP TABLE holdfast.usage;
