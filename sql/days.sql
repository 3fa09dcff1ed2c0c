-- Grain: one row a day of the window, item type and event; days without events are there with zeros.
-- Inputs: window_interactions (view over the day partitions). Parameters: $first_day, $last_day DATE.
WITH grid AS (
    SELECT days.day, kinds.item_type, kinds.event,
    FROM (SELECT UNNEST(RANGE($first_day, $last_day + INTERVAL 1 DAY, INTERVAL 1 DAY))::DATE AS day) AS days
    CROSS JOIN (
        VALUES
        ('music', 'stream'),
        ('podcast', 'stream'), ('podcast', 'follow'), ('podcast', 'preview'),
        ('audiobook', 'stream'), ('audiobook', 'follow'), ('audiobook', 'preview'), ('audiobook', 'intent_to_pay')
    ) AS kinds (item_type, event)
),

counted AS (
    SELECT
        CAST(occurred_at AS DATE) AS day,
        item_type,
        event,
        COUNT(*) AS rows,
        COUNT(DISTINCT user_id) AS users,
        COUNT(DISTINCT item_id) AS titles,
        SUM(listened_seconds)::DOUBLE AS seconds,
    FROM window_interactions
    GROUP BY ALL
)

SELECT
    grid.day,
    grid.item_type,
    grid.event,
    COALESCE(counted.rows, 0) AS rows,
    COALESCE(counted.users, 0) AS users,
    COALESCE(counted.titles, 0) AS titles,
    COALESCE(counted.seconds, 0) AS seconds,
FROM grid
LEFT JOIN counted USING (day, item_type, event)
ORDER BY grid.day, grid.item_type, grid.event
