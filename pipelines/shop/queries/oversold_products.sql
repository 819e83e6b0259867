-- Which products were ordered beyond what is in stock?
SELECT p.product_code, p.product_name, p.quantity_in_stock AS in_stock, sum(l.quantity_ordered) AS ordered
FROM shop.lines l
JOIN shop.products p ON p.product_code = l.product_code
GROUP BY p.product_code, p.product_name, p.quantity_in_stock
HAVING sum(l.quantity_ordered) > p.quantity_in_stock
ORDER BY sum(l.quantity_ordered) - p.quantity_in_stock DESC, p.product_code;
