-- +goose Up

-- That a user was erased, and nothing of who it was: the hash tells whether it was this one, for who knows the id.
CREATE TABLE holdfast.erasures (
  tenant_id   text COLLATE "C" NOT NULL,
  -- SHA-256 of tenant, NUL and user.
  user_hash   bytea NOT NULL,
  owner_id    text COLLATE "C" NOT NULL DEFAULT '',
  -- Of the newest one.
  erase_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT erasures_pkey PRIMARY KEY (tenant_id, user_hash)
);
ALTER TABLE holdfast.erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE holdfast.erasures FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON holdfast.erasures TO holdfast_app;
CREATE POLICY erasures_app ON holdfast.erasures TO holdfast_app
  USING (tenant_id = (SELECT current_setting('app.tenant', true)) AND (SELECT current_setting('app.service', true)) = 'on');

-- A user who is erased leaves no keys, not even revoked ones.
GRANT DELETE ON holdfast.api_keys TO holdfast_operator;

-- +goose Down
REVOKE DELETE ON holdfast.api_keys FROM holdfast_operator;
DROP TABLE holdfast.erasures;
