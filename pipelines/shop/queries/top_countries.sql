-- Which countries bring in the most, leaving out cancelled orders?
SELECT c.country, sum(l.quantity_ordered * l.price_each) AS revenue, count(DISTINCT o.order_number) AS orders
FROM shop.lines l
JOIN shop.orders o ON o.order_number = l.order_number
JOIN shop.customers c ON c.customer_number = o.customer_number
WHERE o.status <> 'Cancelled'
GROUP BY c.country
ORDER BY revenue DESC, c.country
LIMIT 5;
