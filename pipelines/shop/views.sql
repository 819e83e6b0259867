-- What is made of each row as it comes in. Each view becomes a table that grows with its input.

-- What each line is worth, and how large an order it is part of.
CREATE MATERIALIZED VIEW line_amounts AS
SELECT order_number,
       line_number,
       product_code,
       quantity_ordered,
       price_each,
       CAST(quantity_ordered * price_each AS DECIMAL(14, 2)) AS amount,
       CASE WHEN quantity_ordered >= 50 THEN 'bulk'
            WHEN quantity_ordered >= 30 THEN 'regular'
            ELSE 'small' END AS size,
       quantity_ordered >= 50 AND price_each >= 100 AS earns_discount
FROM lines;

-- The lines worth a call by the sales team: a view on a view.
CREATE MATERIALIZED VIEW large_lines AS
SELECT order_number, line_number, product_code, amount, size
FROM line_amounts
WHERE amount >= 8000;

-- Orders that left the house after the day they were promised for.
-- An order that never left carries the placeholder 2006-08-23 as its shipping date.
CREATE MATERIALIZED VIEW late_orders AS
SELECT order_number,
       customer_number,
       status,
       required_date,
       shipped_date,
       CASE WHEN status IN ('Shipped', 'Resolved', 'Disputed') THEN 'shipped late' ELSE 'never shipped' END AS verdict
FROM orders
WHERE shipped_date > required_date;

-- One stream of money: what is owed to the shop as plus, what came in as minus. Its sum is what is still open.
CREATE MATERIALIZED VIEW money_events AS
SELECT 'sale' AS kind,
       CAST(order_number AS VARCHAR) AS reference,
       CAST(quantity_ordered * price_each AS DECIMAL(14, 2)) AS amount
FROM lines
UNION ALL
SELECT 'payment' AS kind,
       check_number AS reference,
       CAST(-amount AS DECIMAL(14, 2)) AS amount
FROM payments;

-- Customers with enough credit to be worth an own contact.
CREATE MATERIALIZED VIEW valued_customers AS
SELECT customer_number,
       customer_name,
       concat(contact_first_name, ' ', contact_last_name) AS contact,
       upper(country) AS country,
       credit_limit,
       CASE WHEN credit_limit >= 100000 THEN 'gold' ELSE 'silver' END AS tier
FROM customers
WHERE credit_limit >= 75000;
