-- ListTenantTables lists the tables whose rows belong to tenants and their users, with the columns of their primary keys
-- behind tenant_id and all columns but that. Tenants, API keys and erasures are the operator's.
-- name: ListTenantTables :many
SELECT c.relname::text AS name,
  (SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL (SELECT unnest(i.indkey::smallint[]) AS attnum, generate_series(1, i.indnatts) AS place) k
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indisprimary AND a.attname <> 'tenant_id')::text[] AS key,
  (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'tenant_id')::text[] AS columns
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'holdfast' AND c.relkind IN ('r', 'p') AND c.relname NOT IN ('tenants', 'api_keys', 'erasures')
ORDER BY c.relname;
