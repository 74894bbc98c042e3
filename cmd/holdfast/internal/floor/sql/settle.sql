-- What autovacuum and the checkpointer would have done by and by.
VACUUM (ANALYZE) holdfast.objects, holdfast.entries, holdfast.events, holdfast.terms, holdfast.timers;
CHECKPOINT;
