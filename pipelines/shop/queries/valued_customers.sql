-- Where are the customers with much credit?
SELECT country, tier, count(*) AS customers, max(credit_limit) AS highest_limit
FROM shop.valued_customers
GROUP BY country, tier
ORDER BY customers DESC, country, tier
LIMIT 6;
