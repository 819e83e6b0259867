-- Which customers have paid less than they ordered, and how much is open?
WITH ordered AS (
  SELECT o.customer_number, sum(a.amount) AS amount
  FROM shop.orders o
  JOIN shop.line_amounts a ON a.order_number = o.order_number
  WHERE o.status <> 'Cancelled'
  GROUP BY o.customer_number
), paid AS (
  SELECT customer_number, sum(amount) AS amount
  FROM shop.payments
  GROUP BY customer_number
)
SELECT c.customer_number, c.customer_name, c.country, ordered.amount AS ordered,
       coalesce(paid.amount, 0) AS paid, ordered.amount - coalesce(paid.amount, 0) AS open
FROM ordered
JOIN shop.customers c ON c.customer_number = ordered.customer_number
LEFT JOIN paid ON paid.customer_number = ordered.customer_number
WHERE ordered.amount > coalesce(paid.amount, 0)
ORDER BY open DESC, c.customer_number
LIMIT 10;
