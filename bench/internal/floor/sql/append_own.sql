-- Lock, update and insert as one call, to one of 1,000 objects.
\set id random(1, 1000)
SELECT bench_floor.append('o' || :id, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx');
