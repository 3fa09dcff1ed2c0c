-- Grain: one row a user: the first day, over all history up to $as_of, with any counted event in any table.
-- Inputs: judged_events. Parameters: none.
SELECT user_id, CAST(MIN(occurred_at) AS DATE) AS first_seen_on,
FROM judged_events
WHERE reason IS NULL
GROUP BY user_id
ORDER BY user_id
