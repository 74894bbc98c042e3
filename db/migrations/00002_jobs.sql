-- +goose Up

-- The tables of the job queue, which River's own migrations make; see MigrateUp. A schema of their own, because they are
-- not like ours: no row in them belongs to a tenant. What a job is told is which object to look at, never what is in it.
CREATE SCHEMA holdfast_jobs;

-- +goose Down
DROP SCHEMA holdfast_jobs CASCADE;
