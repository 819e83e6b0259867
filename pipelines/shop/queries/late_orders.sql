-- Which orders missed their day?
SELECT verdict, status, count(*) AS orders, min(order_number) AS first_order
FROM shop.late_orders
GROUP BY verdict, status
ORDER BY verdict, status;
