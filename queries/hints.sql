-- Notify sends hints to all who listen. Nothing is lost that matters when the machine dies, so the commit waits for no
-- disk: it holds the lock of all commits that notify.
-- name: Notify :exec
SELECT set_config('synchronous_commit', 'off', true), pg_notify('holdfast', m) FROM unnest(@messages::text[]) m;

-- Listen makes the connection get what Notify sends.
-- name: Listen :exec
LISTEN holdfast;
