-- Grain: one row a source table and reason: rows set aside in the window, on $as_of and for capped users, and ids.
-- Inputs: window_rejects (view over the day partitions' rejects); run_rejects (view over extract's rejects).
-- Parameters: $as_of DATE.
-- `capped_user_rows` belong to users over the daily cap that day: quarantined, so no fault of the source.
WITH capped AS (
    SELECT DISTINCT CAST(first_at AS DATE) AS day, source_table, user_id,
    FROM window_rejects
    WHERE reason = 'over_daily_cap'
),

marked AS (
    SELECT
        rejected.source_table, rejected.reason, rejected.user_id, rejected.item_id, rejected.rows, rejected.first_at,
        capped.user_id IS NOT NULL AS is_capped,
    FROM window_rejects AS rejected
    LEFT JOIN capped
        ON
            capped.day = CAST(rejected.first_at AS DATE)
            AND capped.source_table = rejected.source_table
            AND capped.user_id = rejected.user_id
    UNION ALL
    SELECT source_table, reason, user_id, item_id, rows, NULL, false,
    FROM run_rejects
)

SELECT
    source_table,
    reason,
    SUM(rows)::BIGINT AS rows,
    COALESCE(SUM(rows) FILTER (WHERE CAST(first_at AS DATE) = $as_of), 0)::BIGINT AS rows_of_day,
    COALESCE(SUM(rows) FILTER (WHERE is_capped), 0)::BIGINT AS capped_user_rows,
    COUNT(DISTINCT user_id) AS users,
    COUNT(DISTINCT item_id) AS titles,
FROM marked
GROUP BY ALL
ORDER BY source_table, reason
