-- What was sold, what was paid, and what is still open?
SELECT kind, count(*) AS events, sum(amount) AS amount
FROM shop.money_events
GROUP BY kind
UNION ALL
SELECT 'open' AS kind, count(*) AS events, sum(amount) AS amount
FROM shop.money_events
ORDER BY kind;
