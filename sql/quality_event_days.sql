-- Grain: one row a day and item type of the days under comparison, where there was any source row.
-- Inputs: compared_interactions, compared_rejects (views over the day partitions of these days);
--   audiobooks, podcasts, tracks, users (views over extract's tables). Parameters: none.
-- A *capped* user had more events that day than extract.max_events_per_user_day. What was set aside of a capped user
--   (further events, and repeats within one second) is quarantined already: it counts neither as a fault nor as volume.
WITH counted AS (
    SELECT CAST(occurred_at AS DATE) AS day, item_type, user_id, COUNT(*) AS counted,
    FROM compared_interactions
    GROUP BY ALL
),

set_aside AS (
    SELECT
        CAST(first_at AS DATE) AS day,
        REPLACE(source_table, '_events', '') AS item_type,
        COALESCE(user_id, '') AS user_id,
        SUM(rows) AS set_aside,
        COALESCE(SUM(rows) FILTER (WHERE reason = 'over_daily_cap'), 0) AS capped,
        COALESCE(SUM(rows) FILTER (WHERE reason = 'too_short'), 0) AS too_short,
        COALESCE(SUM(rows) FILTER (WHERE reason NOT IN ('too_short', 'over_daily_cap')), 0) AS faults,
        COALESCE(SUM(rows) FILTER (WHERE reason LIKE 'null_%'), 0) AS nulls,
    FROM compared_rejects
    GROUP BY ALL
),

by_user AS (
    SELECT
        day, item_type, user_id,
        COALESCE(counted, 0) AS counted,
        COALESCE(set_aside, 0) AS set_aside,
        COALESCE(capped, 0) AS capped,
        COALESCE(too_short, 0) AS too_short,
        COALESCE(faults, 0) AS faults,
        COALESCE(nulls, 0) AS nulls,
    FROM counted
    FULL JOIN set_aside USING (day, item_type, user_id)
),

totals AS (
    SELECT
        day,
        item_type,
        SUM(counted)::BIGINT AS counted,
        SUM(counted + CASE WHEN capped = 0 THEN set_aside ELSE 0 END)::BIGINT AS ordinary,
        SUM(CASE WHEN capped = 0 THEN faults ELSE 0 END)::BIGINT AS faults,
        SUM(CASE WHEN capped = 0 THEN too_short ELSE 0 END)::BIGINT AS too_short,
        SUM(CASE WHEN capped = 0 THEN nulls ELSE 0 END)::BIGINT AS nulls,
        SUM(counted + set_aside)::BIGINT AS source_rows,
        SUM(CASE WHEN capped > 0 THEN set_aside ELSE 0 END)::BIGINT AS quarantined,
        COUNT(*) FILTER (WHERE capped > 0) AS capped_users,
        COUNT(*) FILTER (WHERE user_id != '') AS users,
        COALESCE(MAX(counted + set_aside) FILTER (WHERE user_id != ''), 0)::BIGINT AS largest_user_rows,
    FROM by_user
    GROUP BY ALL
),

catalogue AS (
    SELECT 'audiobook' AS item_type, audiobook_id AS item_id, FROM audiobooks
    UNION ALL
    SELECT 'podcast', podcast_id, FROM podcasts
    UNION ALL
    SELECT 'music', track_id, FROM tracks
),

unknown_items AS (
    SELECT CAST(occurred_at AS DATE) AS day, item_type, COUNT(*) AS unknown_items,
    FROM compared_interactions
    ANTI JOIN catalogue USING (item_type, item_id)
    GROUP BY ALL
),

unknown_users AS (
    SELECT CAST(occurred_at AS DATE) AS day, item_type, COUNT(*) AS unknown_users,
    FROM compared_interactions
    ANTI JOIN users USING (user_id)
    GROUP BY ALL
)

SELECT
    day, item_type, counted, ordinary, faults, too_short, nulls, source_rows, quarantined, capped_users, users,
    largest_user_rows,
    COALESCE(unknown_items, 0) AS unknown_items,
    COALESCE(unknown_users, 0) AS unknown_users,
FROM totals
LEFT JOIN unknown_items USING (day, item_type)
LEFT JOIN unknown_users USING (day, item_type)
ORDER BY day, item_type
