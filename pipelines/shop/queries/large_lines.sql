-- Which single lines are worth the most?
SELECT l.order_number, p.product_name, l.size, l.amount
FROM shop.large_lines l
JOIN shop.products p ON p.product_code = l.product_code
ORDER BY l.amount DESC, l.order_number, l.line_number
LIMIT 5;
