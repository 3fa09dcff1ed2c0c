-- Grain: one row a row of typed_events, its reason completed by what only shows beside other rows.
-- Inputs: typed_events (temporary table). Parameters: $max_events_per_user_day INTEGER.
-- Adds: 'duplicate' (same user, title, event and second; the longest play stays) and
--   'over_daily_cap' (events of one user on one day in one table beyond the cap; the earliest stay).
WITH numbered AS (
    SELECT
        item_type, user_id, item_id, event, occurred_at, listened_seconds, reason,
        ROW_NUMBER() OVER (
            PARTITION BY reason, item_type, user_id, item_id, event, occurred_at
            ORDER BY listened_seconds DESC
        ) AS copy,
    FROM typed_events
),

deduplicated AS (
    SELECT
        item_type, user_id, item_id, event, occurred_at, listened_seconds,
        CASE WHEN reason IS NULL AND copy > 1 THEN 'duplicate' ELSE reason END AS reason,
    FROM numbered
),

ranked AS (
    SELECT
        *,
        ROW_NUMBER() OVER (
            PARTITION BY reason, item_type, user_id, CAST(occurred_at AS DATE)
            ORDER BY occurred_at, item_id, event, listened_seconds
        ) AS number_that_day,
    FROM deduplicated
)

SELECT
    item_type, user_id, item_id, event, occurred_at, listened_seconds,
    CASE
        WHEN reason IS NULL AND number_that_day > $max_events_per_user_day THEN 'over_daily_cap'
        ELSE reason
    END AS reason,
FROM ranked
