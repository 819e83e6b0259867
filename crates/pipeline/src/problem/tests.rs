//! Every refusal as users see it.
//!
//! The texts are long on purpose: read one as a stranger would before changing what makes it.

use crate::testing::{ORDERS, problems_of};

/// A whole pipeline, and what is said about it.
const ALONE: &[(&str, &str)] = &[
    (
        r#"CREATE SOURSE orders (a INT)"#,
        r#"error: expected `SOURCE`, `MATERIALIZED VIEW` or `SINK`, found `sourse`
  --> shop/p.sql:1:8
   |
 1 | CREATE SOURSE orders (a INT)
   |        ^^^^^^
   = help: did you mean `SOURCE`?"#,
    ),
    (
        r#"CREAT SOURCE orders (a INT)"#,
        r#"error: expected `CREATE`, found `creat`
  --> shop/p.sql:1:1
   |
 1 | CREAT SOURCE orders (a INT)
   | ^^^^^
   = help: did you mean `CREATE`?"#,
    ),
    (
        r#"CREATE VIEW v AS SELECT 1"#,
        r#"error: not supported yet: a view that is not kept as a table
  --> shop/p.sql:1:8
   |
 1 | CREATE VIEW v AS SELECT 1
   |        ^^^^
   = help: write CREATE MATERIALIZED VIEW"#,
    ),
    (
        r#"CREATE OR REPLACE SOURCE a (b INT)"#,
        r#"error: `OR REPLACE` is not needed: apply compares what is with what should be
  --> shop/p.sql:1:8
   |
 1 | CREATE OR REPLACE SOURCE a (b INT)
   |        ^^
   = help: write CREATE and apply with --replace"#,
    ),
    (
        r#"CREATE SOURCE IF NOT EXISTS a (b INT)"#,
        r#"error: `IF NOT EXISTS` is not needed: applying twice changes nothing
  --> shop/p.sql:1:15
   |
 1 | CREATE SOURCE IF NOT EXISTS a (b INT)
   |               ^^
   = help: leave it out"#,
    ),
    (
        r#"DROP SOURCE orders"#,
        r#"error: expected `CREATE`, found `drop`
  --> shop/p.sql:1:1
   |
 1 | DROP SOURCE orders
   | ^^^^
   = help: a pipeline says what should be; remove or change the definition and apply again"#,
    ),
    (
        r#"SELECT * FROM orders"#,
        r#"error: expected `CREATE`, found `select`
  --> shop/p.sql:1:1
   |
 1 | SELECT * FROM orders
   | ^^^^^^
   = help: write CREATE MATERIALIZED VIEW name AS before the query"#,
    ),
    (
        r#"CREATE TABLE customers (id BIGINT PRIMARY KEY, name VARCHAR)"#,
        r#"error: not supported yet: CREATE TABLE … PRIMARY KEY
  --> shop/p.sql:1:8
   |
 1 | CREATE TABLE customers (id BIGINT PRIMARY KEY, name VARCHAR)
   |        ^^^^^
   = help: CREATE SOURCE keeps every row, not the latest of each key"#,
    ),
    (
        r#"CREATE TABLE customers (id BIGINT, name VARCHAR, PRIMARY KEY (id)) WITH (topic = 'c')"#,
        r#"error: not supported yet: CREATE TABLE … PRIMARY KEY
  --> shop/p.sql:1:8
   |
 1 | CREATE TABLE customers (id BIGINT, name VARCHAR, PRIMARY KEY (id)) WITH (topic = 'c')
   |        ^^^^^
   = help: CREATE SOURCE keeps every row, not the latest of each key"#,
    ),
    (
        r#"CREATE TABLE customers (id BIGINT)"#,
        r#"error: a table needs a PRIMARY KEY
  --> shop/p.sql:1:8
   |
 1 | CREATE TABLE customers (id BIGINT)
   |        ^^^^^
   = help: for rows that are only ever added write CREATE SOURCE"#,
    ),
    (
        r#"CREATE SOURCE a (id BIGINT PRIMARY KEY)"#,
        r#"error: a source has no primary key: every message is a row of its own
  --> shop/p.sql:1:28
   |
 1 | CREATE SOURCE a (id BIGINT PRIMARY KEY)
   |                            ^^^^^^^
   = help: leave it out"#,
    ),
    (
        r#"CREATE SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" INT)"#,
        r#"error: unknown type `bignit`
  --> shop/p.sql:1:21
   |
 1 | CREATE SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a…
   |                     ^^^^^^
   = help: did you mean `BIGINT`?

error: not supported yet: a length for VARCHAR
  --> shop/p.sql:1:41
   |
 1 | CREATE SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a…
   |                                         ^
   = help: lengths are not enforced; write VARCHAR

error: type `TIME` is not supported
  --> shop/p.sql:1:51
   |
 1 | CREATE SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a…
   |                                                   ^^^^
   = help: tables have no time of day; use VARCHAR, or BIGINT for microseconds

error: type `JSON` is not supported
  --> shop/p.sql:1:59
   |
 1 | CREATE SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a…
   |                                                           ^^^^
   = help: use VARCHAR and the JSON functions, such as json_get_str(column, 'key')

error: a decimal needs its precision and scale
  --> shop/p.sql:1:67
   |
 1 | …SOURCE a (id BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" IN…
   |                                                             ^^^^^^^
   = help: write DECIMAL(38, 10), or as many digits as you need

error: DECIMAL(40, 2) is out of range
  --> shop/p.sql:1:78
   |
 1 | …d BIGNIT, name VARCHAR(20), day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" INT)
   |                                                             ^^^^^^^
   = help: the precision is 1 to 38 and the scale 0 to the precision

error: TIMESTAMP(9) is finer than tables can hold
  --> shop/p.sql:1:104
   |
 1 | …, day TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" INT)
   |                                                             ^
   = help: timestamps count microseconds; write TIMESTAMP

error: column name `__h` begins with `__`, which is reserved
  --> shop/p.sql:1:109
   |
 1 | … TIME, j JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" INT)
   |                                                             ^^^

error: column name `a b` has ' ' in it, which tables cannot hold
  --> shop/p.sql:1:118
   |
 1 | …JSON, x DECIMAL, y DECIMAL(40,2), z TIMESTAMP(9), __h INT, "a b" INT)
   |                                                             ^^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (id INT NOT NUL, b INT DEFAULT 1, ID INT, "Id" INT)"#,
        r#"error: expected `NULL`, found `nul`
  --> shop/p.sql:1:29
   |
 1 | CREATE SOURCE a (id INT NOT NUL, b INT DEFAULT 1, ID INT, "Id" INT)
   |                             ^^^
   = help: did you mean `NULL`?

error: not supported yet: computed and default values of columns
  --> shop/p.sql:1:40
   |
 1 | CREATE SOURCE a (id INT NOT NUL, b INT DEFAULT 1, ID INT, "Id" INT)
   |                                        ^^^^^^^
   = help: compute the value in a materialized view

error: columns `id` and `Id` differ only in case, which tables cannot hold
  --> shop/p.sql:1:59
   |
 1 | CREATE SOURCE a (id INT NOT NUL, b INT DEFAULT 1, ID INT, "Id" INT)
   |                                                           ^^^^"#,
    ),
    (
        r#"CREATE SOURCE Orders-x (a INT)"#,
        r#"error: expected `(`, found `-`
  --> shop/p.sql:1:21
   |
 1 | CREATE SOURCE Orders-x (a INT)
   |                     ^"#,
    ),
    (
        r#"CREATE SOURCE shop.orders (a INT)"#,
        r#"error: a definition has no schema in its name
  --> shop/p.sql:1:15
   |
 1 | CREATE SOURCE shop.orders (a INT)
   |               ^^^^
   = help: the pipeline is the schema; write the name alone"#,
    ),
    (
        r#"CREATE SOURCE "Orders" (a INT)"#,
        r#"error: name `Orders` must begin with a letter and have only lower-case letters, digits and `_`
  --> shop/p.sql:1:15
   |
 1 | CREATE SOURCE "Orders" (a INT)
   |               ^^^^^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT) WITH (topic = 'tailwater.x', fromat = 'json', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')"#,
        r#"error: topic `tailwater.x` begins with `tailwater.`, which is reserved
  --> shop/p.sql:1:39
   |
 1 | CREATE SOURCE a (b INT) WITH (topic = 'tailwater.x', fromat = 'json', format = 'jsom', connector = 'kafka', header = 'y…
   |                                       ^^^^^^^^^^^^^

error: unknown option `fromat` of a source
  --> shop/p.sql:1:54
   |
 1 | CREATE SOURCE a (b INT) WITH (topic = 'tailwater.x', fromat = 'json', format = 'jsom', connector = 'kafka', header = 'y…
   |                                                      ^^^^^^
   = help: did you mean `format`?

error: unknown value 'jsom' of option `format`
  --> shop/p.sql:1:80
   |
 1 | …NT) WITH (topic = 'tailwater.x', fromat = 'json', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')
   |                                                             ^^^^^^
   = help: did you mean 'json'?

error: unknown option `connector` of a source
  --> shop/p.sql:1:88
   |
 1 | … (topic = 'tailwater.x', fromat = 'json', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')
   |                                                             ^^^^^^^^^
   = help: known are: topic, format, unknown_columns, header, delimiter, statistics, bounds, partition_by, partitions

error: option `header` is only for format 'csv'
  --> shop/p.sql:1:118
   |
 1 | …t = 'json', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')
   |                                                             ^^^^^

error: unknown value 'yes' of option `header`
  --> shop/p.sql:1:118
   |
 1 | …t = 'json', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')
   |                                                             ^^^^^
   = help: known are: true, false

error: option `format` is there twice
  --> shop/p.sql:1:125
   |
 1 | …on', format = 'jsom', connector = 'kafka', header = 'yes', format = 'csv')
   |                                                             ^^^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT) WITH (format = json, topic = "x")"#,
        r#"error: expected a value in single quotes, found `json`
  --> shop/p.sql:1:40
   |
 1 | CREATE SOURCE a (b INT) WITH (format = json, topic = "x")
   |                                        ^^^^
   = help: write 'json'

error: expected a value in single quotes, found `"x"`
  --> shop/p.sql:1:54
   |
 1 | CREATE SOURCE a (b INT) WITH (format = json, topic = "x")
   |                                                      ^^^
   = help: write 'x'"#,
    ),
    (
        r#"CREATE SOURCE a (b INT) WITH (format = 'json', header = true)"#,
        r#"error: option `header` is only for format 'csv'
  --> shop/p.sql:1:57
   |
 1 | CREATE SOURCE a (b INT) WITH (format = 'json', header = true)
   |                                                         ^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT, c ARRAY<INT>) WITH (statistics = 'b, d', bounds = 'c', partition_by = 'b, b', partitions = 'many')"#,
        r#"error: `statistics` names the unknown column `d`
  --> shop/p.sql:1:58
   |
 1 | CREATE SOURCE a (b INT, c ARRAY<INT>) WITH (statistics = 'b, d', bounds = 'c', partition_by = 'b, b', partitions = 'man…
   |                                                          ^^^^^^
   = help: known are: b, c

error: `bounds` cannot work with column `c` of type List(Int32)
  --> shop/p.sql:1:75
   |
 1 | … (b INT, c ARRAY<INT>) WITH (statistics = 'b, d', bounds = 'c', partition_by = 'b, b', partitions = 'many')
   |                                                             ^^^

error: `partition_by` names column `b` twice
  --> shop/p.sql:1:95
   |
 1 | …>) WITH (statistics = 'b, d', bounds = 'c', partition_by = 'b, b', partitions = 'many')
   |                                                             ^^^^^^

error: `partitions` is 'many'; expected a number from 1 to 10000
  --> shop/p.sql:1:116
   |
 1 | … 'b, d', bounds = 'c', partition_by = 'b, b', partitions = 'many')
   |                                                             ^^^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT, c TIMESTAMP, WATERMARK FOR b AS b - INTERVAL '5 seconds')"#,
        r#"error: the watermark needs a TIMESTAMP column; `b` is INT
  --> shop/p.sql:1:52
   |
 1 | CREATE SOURCE a (b INT, c TIMESTAMP, WATERMARK FOR b AS b - INTERVAL '5 seconds')
   |                                                    ^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT, ts TIMESTAMP, WATERMARK FOR tz AS tz - INTERVAL '5 seconds')"#,
        r#"error: the watermark is for the unknown column `tz`
  --> shop/p.sql:1:53
   |
 1 | CREATE SOURCE a (b INT, ts TIMESTAMP, WATERMARK FOR tz AS tz - INTERVAL '5 seconds')
   |                                                     ^^"#,
    ),
    (
        r#"CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '5 secnds')"#,
        r#"error: interval '5 secnds' has the unknown unit `secnds`
  --> shop/p.sql:1:66
   |
 1 | CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '5 secnds')
   |                                                                  ^^^^^^^^^^
   = help: did you mean `seconds`?"#,
    ),
    (
        r#"CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '-5 seconds')"#,
        r#"error: interval '-5 seconds' is negative; a watermark cannot run ahead of the events
  --> shop/p.sql:1:66
   |
 1 | CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '-5 seconds')
   |                                                                  ^^^^^^^^^^^^
   = help: write for example INTERVAL '5 seconds'"#,
    ),
    (
        r#"CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1' MONTH)"#,
        r#"error: interval '1 month' has months or years in it, whose length varies; use days
  --> shop/p.sql:1:66
   |
 1 | CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1' MONTH)
   |                                                                  ^^^
   = help: write for example INTERVAL '5 seconds'"#,
    ),
    (
        r#"CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS other)"#,
        r#"error: expected `ts` again, found `other`
  --> shop/p.sql:1:52
   |
 1 | CREATE SOURCE a (ts TIMESTAMP, WATERMARK FOR ts AS other)
   |                                                    ^^^^^
   = help: write WATERMARK FOR ts AS ts - INTERVAL '5 seconds'"#,
    ),
    (
        r#"CREATE SOURCE a (b INT) CREATE SOURCE c (d INT)"#,
        r#"error: expected `;` before `create`
  --> shop/p.sql:1:25
   |
 1 | CREATE SOURCE a (b INT) CREATE SOURCE c (d INT)
   |                         ^^^^^^"#,
    ),
    (
        r#"CREATE SINK k FROM orders WITH (format = 'json')"#,
        r#"error: sink `k` has no topic
  --> shop/p.sql:1:13
   |
 1 | CREATE SINK k FROM orders WITH (format = 'json')
   |             ^
   = help: write WITH (topic = '…', format = 'json')"#,
    ),
    (
        r#"CREATE SINK k FORM orders WITH (topic = 'x')"#,
        r#"error: expected `FROM`, found `form`
  --> shop/p.sql:1:15
   |
 1 | CREATE SINK k FORM orders WITH (topic = 'x')
   |               ^^^^
   = help: did you mean `FROM`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELEC a FROM orders"#,
        r#"error: expected SELECT, VALUES, or a subquery in the query body, found `selec`
  --> shop/p.sql:1:31
   |
 1 | CREATE MATERIALIZED VIEW v AS SELEC a FROM orders
   |                               ^^^^^
   = help: did you mean `SELECT`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT a FORM orders"#,
        r#"error: expected the end of the statement, found `orders`
  --> shop/p.sql:1:45
   |
 1 | CREATE MATERIALIZED VIEW v AS SELECT a FORM orders
   |                                             ^^^^^^
   = help: did you mean `FROM`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT a FROM orders WHER a > 1"#,
        r#"error: expected the end of the statement, found `a`
  --> shop/p.sql:1:57
   |
 1 | CREATE MATERIALIZED VIEW v AS SELECT a FROM orders WHER a > 1
   |                                                         ^
   = help: did you mean `WHERE`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT a, FROM"#,
        r#"error: expected identifier, found the end of the statement
  --> shop/p.sql:1:45
   |
 1 | CREATE MATERIALIZED VIEW v AS SELECT a, FROM
   |                                             ^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS"#,
        r#"error: expected a query, found the end of the statement
  --> shop/p.sql:1:30
   |
 1 | CREATE MATERIALIZED VIEW v AS
   |                              ^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v (a, b) AS SELECT 1"#,
        r#"error: not supported yet: a list of column names after the view's name
  --> shop/p.sql:1:28
   |
 1 | CREATE MATERIALIZED VIEW v (a, b) AS SELECT 1
   |                            ^
   = help: name the columns in the query with AS"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v SELECT 1"#,
        r#"error: expected `AS`, found `select`
  --> shop/p.sql:1:28
   |
 1 | CREATE MATERIALIZED VIEW v SELECT 1
   |                            ^^^^^^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT) WITH (topic = 'unterminated)"#,
        r#"error: unterminated string literal
  --> shop/p.sql:1:39
   |
 1 | CREATE SOURCE a (b INT) WITH (topic = 'unterminated)
   |                                       ^"#,
    ),
    (
        r#"CREATE SOURCE a (b INT))"#,
        r#"error: expected `;` before `)`
  --> shop/p.sql:1:24
   |
 1 | CREATE SOURCE a (b INT))
   |                        ^"#,
    ),
];

/// What follows the source `orders`, which takes the first five lines.
const AFTER_ORDERS: &[(&str, &str)] = &[
    (
        r#"CREATE SINK k FROM ordrs WITH (topic = 'x')"#,
        r#"error: no source or view `ordrs`
  --> shop/p.sql:6:20
   |
 6 | CREATE SINK k FROM ordrs WITH (topic = 'x')
   |                    ^^^^^
   = help: did you mean `orders`?"#,
    ),
    (
        r#"CREATE SINK k FROM orders WITH (topic = 'shop.orders')"#,
        r#"error: the sink writes topic `shop.orders`, which its own input `orders` reads
  --> shop/p.sql:6:41
   |
 6 | CREATE SINK k FROM orders WITH (topic = 'shop.orders')
   |                                         ^^^^^^^^^^^^^"#,
    ),
    (
        r#"CREATE SINK k FROM orders WITH (topic = 'x'); CREATE MATERIALIZED VIEW v AS SELECT * FROM k"#,
        r#"error: `k` is a sink and has no rows
  --> shop/p.sql:6:91
   |
 6 | CREATE SINK k FROM orders WITH (topic = 'x'); CREATE MATERIALIZED VIEW v AS SELECT * FROM k
   |                                                                                           ^
   = help: read what the sink reads"#,
    ),
    (
        r#"CREATE SOURCE orders_rejected (a INT)"#,
        r#"error: `orders_rejected` is the name of the table with what `orders` rejects
  --> shop/p.sql:6:15
   |
 6 | CREATE SOURCE orders_rejected (a INT)
   |               ^^^^^^^^^^^^^^^
   = help: choose another name"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country, sum(amount) AS revenue, count(*) AS n
FROM orders
GROUP BY country
HAVING count(*) > 1
ORDER BY country
LIMIT 10 OFFSET 5"#,
        r#"error: not supported yet: the aggregate function `sum`
  --> shop/p.sql:6:47
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country, sum(amount) AS revenue, count(*) AS n
   |                                               ^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: the aggregate function `count`
  --> shop/p.sql:6:71
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country, sum(amount) AS revenue, count(*) AS n
   |                                                                       ^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: GROUP BY
  --> shop/p.sql:8:1
   |
 8 | GROUP BY country
   | ^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: HAVING
  --> shop/p.sql:9:1
   |
 9 | HAVING count(*) > 1
   | ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: ORDER BY
   --> shop/p.sql:10:1
    |
 10 | ORDER BY country
    | ^^^^^
    = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: LIMIT
   --> shop/p.sql:11:1
    |
 11 | LIMIT 10 OFFSET 5
    | ^^^^^
    = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT DISTINCT country FROM orders"#,
        r#"error: not supported yet: DISTINCT
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT DISTINCT country FROM orders
   |                                      ^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT o.country FROM orders AS o LEFT JOIN orders AS p ON o.order_id = p.order_id"#,
        r#"error: not supported yet: a join
  --> shop/p.sql:6:70
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT o.country FROM orders AS o LEFT JOIN orders AS p ON o.order_id = p.order_id
   |                                                                      ^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT o.country FROM orders o, orders p"#,
        r#"error: not supported yet: a join (two relations in FROM)
  --> shop/p.sql:6:63
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT o.country FROM orders o, orders p
   |                                                               ^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT row_number() OVER (PARTITION BY country ORDER BY amount) AS n FROM orders"#,
        r#"error: not supported yet: the window function `row_number` OVER (…)
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT row_number() OVER (PARTITION BY country ORDER BY amount) AS n FROM orders
   |                                      ^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT window_start FROM TUMBLE(orders, ordered_at, INTERVAL '1 minute')"#,
        r#"error: not supported yet: windows of time (TUMBLE)
  --> shop/p.sql:6:56
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT window_start FROM TUMBLE(orders, ordered_at, INTERVAL '1 minute')
   |                                                        ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT window_start FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(ordered_at), INTERVAL '1' MINUTE))"#,
        r#"error: not supported yet: windows of time (TUMBLE)
  --> shop/p.sql:6:62
   |
 6 | …EATE MATERIALIZED VIEW v AS SELECT window_start FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(ordered_at), INTERVAL '1' M…
   |                                                             ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT tumble(ordered_at) AS w FROM orders"#,
        r#"error: not supported yet: windows of time (TUMBLE)
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT tumble(ordered_at) AS w FROM orders
   |                                      ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders UNION SELECT country FROM orders EXCEPT SELECT country FROM orders"#,
        r#"error: not supported yet: UNION without ALL
  --> shop/p.sql:6:58
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders UNION SELECT country FROM orders EXCEPT SELECT country FROM or…
   |                                                          ^^^^^
   = help: write UNION ALL; to drop repeated rows a view would have to remember all of them

error: not supported yet: EXCEPT
  --> shop/p.sql:6:91
   |
 6 | …ELECT country FROM orders UNION SELECT country FROM orders EXCEPT SELECT country FROM orders
   |                                                             ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders WHERE amount > (SELECT max(amount) FROM orders) AND EXISTS (SELECT 1 FROM orders) AND order_id IN (SELECT order_id FROM orders)"#,
        r#"error: not supported yet: a subquery in an expression
  --> shop/p.sql:6:74
   |
 6 | …LIZED VIEW v AS SELECT country FROM orders WHERE amount > (SELECT max(amount) FROM orders) AND EXISTS (SELECT 1 FROM o…
   |                                                             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: a subquery in an expression
  --> shop/p.sql:6:118
   |
 6 | …HERE amount > (SELECT max(amount) FROM orders) AND EXISTS (SELECT 1 FROM orders) AND order_id IN (SELECT order_id FROM…
   |                                                             ^^^^^^^^^^^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL

error: not supported yet: a subquery in an expression
  --> shop/p.sql:6:157
   |
 6 | …orders) AND EXISTS (SELECT 1 FROM orders) AND order_id IN (SELECT order_id FROM orders)
   |                                                             ^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT unnest(tags) AS tag FROM orders"#,
        r#"error: not supported yet: UNNEST
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT unnest(tags) AS tag FROM orders
   |                                      ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT t FROM orders CROSS JOIN UNNEST(tags) AS t"#,
        r#"error: not supported yet: a join
  --> shop/p.sql:6:58
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT t FROM orders CROSS JOIN UNNEST(tags) AS t
   |                                                          ^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS WITH RECURSIVE r AS (SELECT country FROM orders) SELECT * FROM r"#,
        r#"error: not supported yet: WITH RECURSIVE
  --> shop/p.sql:6:31
   |
 6 | CREATE MATERIALIZED VIEW v AS WITH RECURSIVE r AS (SELECT country FROM orders) SELECT * FROM r
   |                               ^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS VALUES (1), (2)"#,
        r#"error: not supported yet: VALUES
  --> shop/p.sql:6:31
   |
 6 | CREATE MATERIALIZED VIEW v AS VALUES (1), (2)
   |                               ^^^^^^
   = help: a view must read a source or another view"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT 1 AS one"#,
        r#"error: a view must read a source or another view
  --> shop/p.sql:6:31
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT 1 AS one
   |                               ^^^^^^
   = help: add FROM"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders TABLESAMPLE BERNOULLI (10)"#,
        r#"error: not supported yet: anything but an alias after the name of a relation
  --> shop/p.sql:6:51
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders TABLESAMPLE BERNOULLI (10)
   |                                                   ^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders FOR UPDATE"#,
        r#"error: not supported yet: FOR after a query
  --> shop/p.sql:6:58
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders FOR UPDATE
   |                                                          ^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders FETCH FIRST 5 ROWS ONLY"#,
        r#"error: not supported yet: FETCH
  --> shop/p.sql:6:58
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders FETCH FIRST 5 ROWS ONLY
   |                                                          ^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders QUALIFY row_number() OVER (ORDER BY amount) = 1"#,
        r#"error: not supported yet: QUALIFY
  --> shop/p.sql:6:58
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders QUALIFY row_number() OVER (ORDER BY amount) = 1
   |                                                          ^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders |> WHERE amount > 1"#,
        r#"error: not supported yet: pipe operators
  --> shop/p.sql:6:31
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders |> WHERE amount > 1
   |                               ^^^^^^^^^^^^^^^^^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country, now() AS seen, current_date AS today, CURRENT_TIMESTAMP AS t, random() AS r, uuid() AS u FROM orders"#,
        r#"error: `now` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:47
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country, now() AS seen, current_date AS today, CURRENT_TIMESTAMP AS t, random() AS…
   |                                               ^^^
   = help: use a column of the input, such as the time an event carries

error: `current_date` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:62
   |
 6 | …EATE MATERIALIZED VIEW v AS SELECT country, now() AS seen, current_date AS today, CURRENT_TIMESTAMP AS t, random() AS …
   |                                                             ^^^^^^^^^^^^
   = help: use a column of the input, such as the time an event carries

error: `current_timestamp` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:85
   |
 6 | …v AS SELECT country, now() AS seen, current_date AS today, CURRENT_TIMESTAMP AS t, random() AS r, uuid() AS u FROM ord…
   |                                                             ^^^^^^^^^^^^^^^^^
   = help: use a column of the input, such as the time an event carries

error: `random` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:109
   |
 6 | …() AS seen, current_date AS today, CURRENT_TIMESTAMP AS t, random() AS r, uuid() AS u FROM orders
   |                                                             ^^^^^^
   = help: use a column of the input, such as the time an event carries

error: `uuid` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:124
   |
 6 | …rent_date AS today, CURRENT_TIMESTAMP AS t, random() AS r, uuid() AS u FROM orders
   |                                                             ^^^^
   = help: use a column of the input, such as the time an event carries"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders WHERE ordered_at > now() - INTERVAL '1 day'"#,
        r#"error: `now` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:77
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders WHERE ordered_at > now() - INTERVAL '1 day'
   |                                                                             ^^^
   = help: use a column of the input, such as the time an event carries"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT version() AS v FROM orders"#,
        r#"error: `version` is not allowed: a view must give the same rows for the same input
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT version() AS v FROM orders
   |                                      ^^^^^^^
   = help: use a column of the input, such as the time an event carries"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT $1 AS p FROM orders"#,
        r#"error: a view has no parameters
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT $1 AS p FROM orders
   |                                      ^^
   = help: write the value"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amonut FROM orders WHERE coutry = 'DE'"#,
        r#"error: no column `amonut`
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amonut FROM orders WHERE coutry = 'DE'
   |                                      ^^^^^^
   = help: did you mean `amount`?

error: no column `coutry`
  --> shop/p.sql:6:63
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amonut FROM orders WHERE coutry = 'DE'
   |                                                               ^^^^^^
   = help: did you mean `country`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT o.amonut FROM orders o"#,
        r#"error: no column `o.amonut`
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT o.amonut FROM orders o
   |                                      ^^^^^^^^
   = help: did you mean `amount`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT x.amount FROM orders o"#,
        r#"error: nothing is called `x` in FROM
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT x.amount FROM orders o
   |                                      ^^^^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount FROM ordrs"#,
        r#"error: no source or view `ordrs`
  --> shop/p.sql:6:50
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount FROM ordrs
   |                                                  ^^^^^
   = help: did you mean `orders`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount FROM other.orders"#,
        r#"error: not supported yet: reading from another pipeline
  --> shop/p.sql:6:50
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount FROM other.orders
   |                                                  ^^^^^^^^^^^^
   = help: a view reads sources and views of its own pipeline, without a schema"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT uppr(country) AS c FROM orders"#,
        r#"error: no function `uppr`
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT uppr(country) AS c FROM orders
   |                                      ^^^^
   = help: did you mean `upper`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT upper(country), amount + 1, count FROM orders"#,
        r#"error: no column `count`
  --> shop/p.sql:6:66
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(country), amount + 1, count FROM orders
   |                                                                  ^^^^^
   = help: did you mean `amount`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT upper(country), amount + 1 FROM orders"#,
        r#"error: column 1 of the view has no name
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(country), amount + 1 FROM orders
   |                                      ^^^^^^^^^^^^^
   = help: add AS and a name

error: column 2 of the view has no name
  --> shop/p.sql:6:54
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(country), amount + 1 FROM orders
   |                                                      ^^^^^^^^^^
   = help: add AS and a name"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount, country AS amount FROM orders"#,
        r#"error: two columns of the view are called `amount`
  --> shop/p.sql:6:57
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount, country AS amount FROM orders
   |                                                         ^^^^^^
   = help: name one of them with AS"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount, country AS "Amount" FROM orders"#,
        r#"error: columns `amount` and `Amount` differ only in case, which tables cannot hold
  --> shop/p.sql:6:46
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount, country AS "Amount" FROM orders
   |                                              ^^^^^^^^^^^^^^^^^^^
   = help: name one of them with AS"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount AS __amount FROM orders"#,
        r#"error: column name `__amount` begins with `__`, which is reserved
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount AS __amount FROM orders
   |                                      ^^^^^^^^^^^^^^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT *, amount FROM orders"#,
        r#"error: two columns of the view are called `amount`
  --> shop/p.sql:6:41
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT *, amount FROM orders
   |                                         ^^^^^^
   = help: name one of them with AS"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT ordered_at - ordered_at AS d, NULL AS n, json_get(payload, 'a') AS j, CAST(ordered_at AS TIME) AS t, INTERVAL '1 day' AS i FROM orders"#,
        r#"error: column `d` is an interval, which tables cannot hold
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT ordered_at - ordered_at AS d, NULL AS n, json_get(payload, 'a') AS j, CAST(ordered…
   |                                      ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = help: tables have no intervals; make it a number, for example with date_part('epoch', …)

error: column `n` is NULL, which tables cannot hold
  --> shop/p.sql:6:68
   |
 6 | …ATERIALIZED VIEW v AS SELECT ordered_at - ordered_at AS d, NULL AS n, json_get(payload, 'a') AS j, CAST(ordered_at AS …
   |                                                             ^^^^^^^^^
   = help: cast NULL to a type, for example CAST(NULL AS VARCHAR)

error: column `j` is a JSON value of no fixed type, which tables cannot hold
  --> shop/p.sql:6:79
   |
 6 | … VIEW v AS SELECT ordered_at - ordered_at AS d, NULL AS n, json_get(payload, 'a') AS j, CAST(ordered_at AS TIME) AS t,…
   |                                                             ^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = help: say which type you expect: json_get_str, json_get_int, json_get_float, json_get_bool, or `->>`

error: column `t` is a time of day, which tables cannot hold
  --> shop/p.sql:6:113
   |
 6 | …ered_at AS d, NULL AS n, json_get(payload, 'a') AS j, CAST(ordered_at AS TIME) AS t, INTERVAL '1 day' AS i FROM orders
   |                                                             ^^^^^^^^^^^^^^^^^^^^^^^^
   = help: cast it to VARCHAR

error: column `i` is an interval, which tables cannot hold
  --> shop/p.sql:6:148
   |
 6 | …ayload, 'a') AS j, CAST(ordered_at AS TIME) AS t, INTERVAL '1 day' AS i FROM orders
   |                                                             ^^^^^^^^^^^^
   = help: tables have no intervals; make it a number, for example with date_part('epoch', …)"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT map(['a'], [1]) AS m FROM orders"#,
        r#"error: column `m` is a map, which tables cannot hold
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT map(['a'], [1]) AS m FROM orders
   |                                      ^^^^^^^^^^^^^^^^^^^^
   = help: take single values out of it, for example m['key']"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT upper(country, 1) AS c FROM orders"#,
        r#"error: function 'upper' expects 1 arguments but received 2. No function matches the given name and argument types 'upper(Utf8, Int64)'. You might need to add explicit type casts
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(country, 1) AS c FROM orders
   |                                      ^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country > ordered_at AS c, amount AND true AS d FROM orders"#,
        r#"error: cannot infer common argument type for logical boolean operation Decimal128(12, 2) AND Boolean
  --> shop/p.sql:6:65
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country > ordered_at AS c, amount AND true AS d FROM orders
   |                                                                 ^^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders WHERE amount"#,
        r#"error: cannot create filter with non-boolean predicate 'orders.amount' returning Decimal128(12, 2)
  --> shop/p.sql:6:64
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders WHERE amount
   |                                                                ^^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT CAST(country AS FOO) AS c FROM orders"#,
        r#"error: unsupported SQL type foo
  --> shop/p.sql:6:54
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT CAST(country AS FOO) AS c FROM orders
   |                                                      ^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS
SELECT CAST(country AS VARCHAR(5)) AS a, country::CHAR(2) AS b, TRY_CAST(amount AS FLOAT(53)) AS c FROM orders"#,
        r#"error: not supported yet: a length for VARCHAR
  --> shop/p.sql:7:24
   |
 7 | SELECT CAST(country AS VARCHAR(5)) AS a, country::CHAR(2) AS b, TRY_CAST(amount AS FLOAT(53)) AS c FROM orders
   |                        ^^^^^^^
   = help: lengths are not enforced; write left(…, 5) to cut a text off, or VARCHAR alone

error: not supported yet: a length for CHAR
  --> shop/p.sql:7:51
   |
 7 | SELECT CAST(country AS VARCHAR(5)) AS a, country::CHAR(2) AS b, TRY_CAST(amount AS FLOAT(53)) AS c FROM orders
   |                                                   ^^^^
   = help: lengths are not enforced; write left(…, 2) to cut a text off, or CHAR alone

error: not supported yet: a length for FLOAT
  --> shop/p.sql:7:84
   |
 7 | SELECT CAST(country AS VARCHAR(5)) AS a, country::CHAR(2) AS b, TRY_CAST(amount AS FLOAT(53)) AS c FROM orders
   |                                                                                    ^^^^^
   = help: FLOAT has 24 bits; write DOUBLE for 53"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT country FROM orders UNION ALL SELECT country, amount FROM orders"#,
        r#"error: UNION queries have different number of columns
  --> shop/p.sql:6:31
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT country FROM orders UNION ALL SELECT country, amount FROM orders
   |                               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT amount FROM orders UNION ALL SELECT tags FROM orders"#,
        r#"error: incompatible inputs for Union: Previous inputs were of type Decimal128(12, 2), but got incompatible type List(Utf8) on column 'tags'
  --> shop/p.sql:6:74
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT amount FROM orders UNION ALL SELECT tags FROM orders
   |                                                                          ^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT address.stret AS c FROM orders"#,
        r#"error: field stret not found in struct
  --> shop/p.sql:6:46
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT address.stret AS c FROM orders
   |                                              ^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v WITH (statistics = 'amont', bound = 'x') AS SELECT amount FROM orders"#,
        r#"error: unknown option `bound` of a view
  --> shop/p.sql:6:56
   |
 6 | CREATE MATERIALIZED VIEW v WITH (statistics = 'amont', bound = 'x') AS SELECT amount FROM orders
   |                                                        ^^^^^
   = help: did you mean `bounds`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v WITH (statistics = 'amont', partition_by = 'amount') AS SELECT amount FROM orders"#,
        r#"error: `statistics` names the unknown column `amont`
  --> shop/p.sql:6:47
   |
 6 | CREATE MATERIALIZED VIEW v WITH (statistics = 'amont', partition_by = 'amount') AS SELECT amount FROM orders
   |                                               ^^^^^^^
   = help: did you mean `amount`?"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW a AS SELECT * FROM c; CREATE MATERIALIZED VIEW b AS SELECT * FROM a; CREATE MATERIALIZED VIEW c AS SELECT * FROM b"#,
        r#"error: views go in a circle: `a` reads `c` reads `b` reads `a`
  --> shop/p.sql:6:26
   |
 6 | CREATE MATERIALIZED VIEW a AS SELECT * FROM c; CREATE MATERIALIZED VIEW b AS SELECT * FROM a; CREATE MATERIALIZED VIEW …
   |                          ^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW a AS SELECT * FROM a"#,
        r#"error: views go in a circle: `a` reads `a`
  --> shop/p.sql:6:26
   |
 6 | CREATE MATERIALIZED VIEW a AS SELECT * FROM a
   |                          ^"#,
    ),
    (
        r#"CREATE SOURCE orders (a INT)"#,
        r#"error: `orders` is defined twice
  --> shop/p.sql:6:15
   |
 6 | CREATE SOURCE orders (a INT)
   |               ^^^^^^
   = help: the other definition is at shop/p.sql:1:15"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW bad AS SELECT nope FROM orders; CREATE MATERIALIZED VIEW after AS SELECT * FROM bad"#,
        r#"error: no column `nope`
  --> shop/p.sql:6:40
   |
 6 | CREATE MATERIALIZED VIEW bad AS SELECT nope FROM orders; CREATE MATERIALIZED VIEW after AS SELECT * FROM bad
   |                                        ^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT upper(DISTINCT country) AS c, upper(country) FILTER (WHERE true) AS d FROM orders"#,
        r#"error: `upper` takes plain arguments only
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(DISTINCT country) AS c, upper(country) FILTER (WHERE true) AS d FROM orders
   |                                      ^^^^^

error: `upper` takes plain arguments only
  --> shop/p.sql:6:68
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT upper(DISTINCT country) AS c, upper(country) FILTER (WHERE true) AS d FROM orders
   |                                                                    ^^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT * FROM generate_series(1, 3)"#,
        r#"error: not supported yet: the table function `generate_series`
  --> shop/p.sql:6:45
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT * FROM generate_series(1, 3)
   |                                             ^^^^^^^^^^^^^^^
   = help: a view works row by row for now: projections, filters, CASE, casts, functions and UNION ALL"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT * RENAME (amount AS a) FROM orders"#,
        r#"error: not supported yet: this option of `*`
  --> shop/p.sql:6:38
   |
 6 | CREATE MATERIALIZED VIEW v AS SELECT * RENAME (amount AS a) FROM orders
   |                                      ^
   = help: EXCLUDE, EXCEPT and REPLACE work; otherwise list the columns"#,
    ),
    (
        r#"	CREATE MATERIALIZED VIEW v AS	SELECT '日本🦀' AS j, nope FROM orders"#,
        r#"error: no column `nope`
  --> shop/p.sql:6:51
   |
 6 |  CREATE MATERIALIZED VIEW v AS SELECT '日本🦀' AS j, nope FROM orders
   |                                                   ^^^^"#,
    ),
    (
        r#"CREATE MATERIALIZED VIEW v AS SELECT 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' AS j, nope, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb' AS k FROM orders"#,
        r#"error: no column `nope`
  --> shop/p.sql:6:154
   |
 6 | …aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' AS j, nope, 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb…
   |                                                             ^^^^"#,
    ),
];

#[test]
fn every_fault_shows_its_place_and_a_way_out() {
    for (sql, expected) in ALONE {
        assert_eq!(problems_of(sql), *expected, "\n--- in\n{sql}");
    }
    for (sql, expected) in AFTER_ORDERS {
        assert_eq!(problems_of(&format!("{ORDERS}{sql}")), *expected, "\n--- in\n{sql}");
    }
}

#[test]
fn a_line_without_end_is_cut_around_the_fault() {
    let sql = format!("CREATE SOURCE a ({}x IMT, {}y INT)", "/* - */ ".repeat(1_000), "/* - */ ".repeat(1_000));
    let shown = problems_of(&sql);
    assert!(shown.lines().all(|line| line.chars().count() < 140), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    let caret = lines[4].find('^').expect("has a caret");
    let above: String = lines[3].chars().skip(caret).take(3).collect();
    assert_eq!(above, "IMT");
}
