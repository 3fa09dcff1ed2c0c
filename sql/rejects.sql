-- Grain: one row a table, reason, user, title and event: how many rows of the day were set aside for it.
-- Inputs: judged_events (temporary table). Parameters: $day DATE, NULL for the rows without a believable day.
SELECT
    item_type || '_events' AS source_table,
    reason, user_id, item_id, event,
    COUNT(*) AS rows,
    MIN(occurred_at) AS first_at,
    MAX(occurred_at) AS last_at,
    MIN(listened_seconds) AS least_seconds,
    MAX(listened_seconds) AS most_seconds,
FROM judged_events
WHERE
    reason IS NOT NULL
    AND (CAST($day AS DATE) IS NULL OR CAST(occurred_at AS DATE) = CAST($day AS DATE))
GROUP BY ALL
ORDER BY source_table, reason, user_id, item_id, event
