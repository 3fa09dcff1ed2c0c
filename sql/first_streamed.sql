-- Grain: one row a user and title (audiobooks and podcasts): the first day, over all history up to $as_of,
--   with a counted stream. Readers compare it with their own cut or target day.
-- Inputs: judged_events. Parameters: none.
SELECT item_type, user_id, item_id, CAST(MIN(occurred_at) AS DATE) AS first_streamed_on,
FROM judged_events
WHERE reason IS NULL AND event = 'stream' AND item_type IN ('audiobook', 'podcast')
GROUP BY item_type, user_id, item_id
ORDER BY item_type, user_id, item_id
