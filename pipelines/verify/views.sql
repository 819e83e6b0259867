-- What must follow from the rows, row by row: a filter with a projection, a union of two branches, a view on a view.
-- `tailwater verify check` knows these definitions; a changed one needs a changed checker.

CREATE MATERIALIZED VIEW even_events AS
SELECT run_id, producer, key, seq, seq * 2 + key AS mixed
FROM events
WHERE seq % 2 = 0;

CREATE MATERIALIZED VIEW flows AS
SELECT run_id, producer, key, seq, 'in' AS way, crc AS amount
FROM events
UNION ALL
SELECT run_id, producer, key, seq, 'out' AS way, -crc AS amount
FROM events
WHERE seq % 3 = 0;

CREATE MATERIALIZED VIEW fifth_events AS
SELECT run_id, producer, key, seq, mixed
FROM even_events
WHERE mixed % 5 = 0;
