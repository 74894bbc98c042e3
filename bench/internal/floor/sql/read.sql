-- What a read of a state and its last 20 entries asks, as one pipeline and so one transaction: the scope, the state, the
-- entries. The role is set, to the one that it is already.
\set id random(1, 1000)
\startpipeline
SELECT set_config('role', current_user, true), set_config('app.tenant', 't', true), set_config('app.owners', '{}', true), set_config('app.service', 'on', true), set_config('plan_cache_mode', 'force_generic_plan', true), clock_timestamp();
SELECT version, state FROM bench_floor.objects WHERE object_id = 'o' || :id;
SELECT key, body FROM bench_floor.entries WHERE object_id = 'o' || :id AND collection = 'messages' ORDER BY key DESC LIMIT 20;
\endpipeline
