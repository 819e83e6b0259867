-- Which lines belong to an order that never came?
SELECT l.order_number, l.line_number, l.product_code, l.quantity_ordered, l.price_each
FROM shop.lines l
LEFT JOIN shop.orders o ON o.order_number = l.order_number
WHERE o.order_number IS NULL
ORDER BY l.order_number, l.line_number;
