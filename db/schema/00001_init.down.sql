-- The roles stay: other databases of the cluster may use them.
DROP SCHEMA holdfast_jobs CASCADE;
DROP SCHEMA holdfast CASCADE;
