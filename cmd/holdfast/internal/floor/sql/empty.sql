-- No objects: only for a database that is thrown away.
TRUNCATE holdfast.objects, holdfast.entries, holdfast.events, holdfast.terms, holdfast.timers;
