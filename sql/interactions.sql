-- Grain: one counted event (a stream long enough, or a weak signal) of one day, in a total order.
-- Inputs: judged_events (temporary table). Parameters: $day DATE.
SELECT item_type, user_id, item_id, event, occurred_at, COALESCE(listened_seconds, 0) AS listened_seconds,
FROM judged_events
WHERE reason IS NULL AND occurred_at >= $day AND occurred_at < $day + INTERVAL 1 DAY
ORDER BY item_type, user_id, occurred_at, item_id, event
