-- How much was ordered in each month, leaving out cancelled orders?
SELECT CAST(date_trunc('month', o.order_date) AS DATE) AS month, sum(a.amount) AS revenue,
       count(DISTINCT o.order_number) AS orders
FROM shop.orders o
JOIN shop.line_amounts a ON a.order_number = o.order_number
WHERE o.status <> 'Cancelled'
GROUP BY CAST(date_trunc('month', o.order_date) AS DATE)
ORDER BY month;
