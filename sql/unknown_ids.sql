-- Grain: one row a table, event and id that the catalogue (or the users table) lacks, with the events that name it.
-- Inputs: window_interactions; audiobooks, podcasts, tracks, users (temporary tables). Parameters: none.
-- Events on unknown titles are set aside by every reader (an inner join with the catalogue); events of unknown
--   users count, with unknown attributes.
WITH catalogue AS (
    SELECT 'audiobook' AS item_type, audiobook_id AS item_id, FROM audiobooks
    UNION ALL
    SELECT 'podcast', podcast_id, FROM podcasts
    UNION ALL
    SELECT 'music', track_id, FROM tracks
)

SELECT
    item_type || '_events' AS source_table,
    'unknown_item_id' AS reason,
    NULL::VARCHAR AS user_id,
    item_id,
    event,
    COUNT(*) AS rows,
    MIN(occurred_at) AS first_at,
    MAX(occurred_at) AS last_at,
    MIN(listened_seconds) AS least_seconds,
    MAX(listened_seconds) AS most_seconds,
FROM window_interactions
ANTI JOIN catalogue USING (item_type, item_id)
GROUP BY ALL
UNION ALL
SELECT
    item_type || '_events',
    'unknown_user_id',
    user_id,
    NULL::VARCHAR,
    event,
    COUNT(*),
    MIN(occurred_at),
    MAX(occurred_at),
    MIN(listened_seconds),
    MAX(listened_seconds),
FROM window_interactions
ANTI JOIN users USING (user_id)
GROUP BY ALL
ORDER BY source_table, reason, user_id, item_id, event
