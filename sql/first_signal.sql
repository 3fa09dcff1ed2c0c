-- Grain: one row a user: the first day, over all history up to $as_of, with any counted audiobook event
--   (stream, follow, preview or intent to pay). From then on the user is warm.
-- Inputs: judged_events. Parameters: none.
SELECT user_id, CAST(MIN(occurred_at) AS DATE) AS first_signal_on,
FROM judged_events
WHERE reason IS NULL AND item_type = 'audiobook'
GROUP BY user_id
ORDER BY user_id
