-- Grain: one row a source row of the three event tables, for events of the days $first_day..$last_day,
--   and the rows that belong to no believable day ($undated = true: no time, or before 2000).
-- Inputs: source.music_events, source.podcast_events, source.audiobook_events.
-- Parameters: $first_day, $last_day DATE; $undated BOOLEAN; $min_stream_seconds, $max_seconds, $late_days INTEGER.
-- Nothing is dropped: a row that cannot count carries its reason.
WITH all_events AS (
    SELECT
        'music' AS item_type, user_id, track_id AS item_id, event,
        occurred_at, occurred_at_text, seconds_played, seconds_played_text, arrived_on,
    FROM source.music_events
    UNION ALL
    SELECT
        'podcast', user_id, podcast_id, event,
        occurred_at, occurred_at_text, seconds_played, seconds_played_text, arrived_on,
    FROM source.podcast_events
    UNION ALL
    SELECT
        'audiobook', user_id, audiobook_id, event,
        occurred_at, occurred_at_text, seconds_played, seconds_played_text, arrived_on,
    FROM source.audiobook_events
),

selected AS (
    SELECT *
    FROM all_events
    WHERE
        (occurred_at >= $first_day AND occurred_at < $last_day + INTERVAL 1 DAY AND NOT $undated)
        OR (
            $undated
            AND (occurred_at IS NULL OR occurred_at < TIMESTAMP '2000-01-01')
            AND COALESCE(arrived_on <= $last_day, true)
        )
),

normalised AS (
    SELECT
        item_type,
        NULLIF(TRIM(user_id), '') AS user_id,
        NULLIF(TRIM(item_id), '') AS item_id,
        LOWER(TRIM(event)) AS event,
        DATE_TRUNC('second', occurred_at) AS occurred_at,
        occurred_at_text,
        seconds_played AS listened_seconds,
        seconds_played_text,
        arrived_on,
    FROM selected
)

SELECT
    item_type,
    user_id,
    item_id,
    event,
    occurred_at,
    listened_seconds,
    CASE
        WHEN occurred_at IS NULL AND occurred_at_text IS NOT NULL THEN 'unreadable_time'
        WHEN occurred_at IS NULL THEN 'null_time'
        WHEN occurred_at < TIMESTAMP '2000-01-01' THEN 'before_2000'
        WHEN arrived_on < CAST(occurred_at AS DATE) THEN 'arrived_before_it_happened'
        WHEN arrived_on > CAST(occurred_at AS DATE) + $late_days THEN 'too_late'
        WHEN user_id IS NULL THEN 'null_user_id'
        WHEN item_id IS NULL THEN 'null_item_id'
        WHEN event IS NULL THEN 'null_event'
        WHEN item_type = 'music' AND event != 'stream' THEN 'unknown_event'
        WHEN item_type = 'podcast' AND event NOT IN ('stream', 'follow', 'preview') THEN 'unknown_event'
        WHEN event NOT IN ('stream', 'follow', 'preview', 'intent_to_pay') THEN 'unknown_event'
        WHEN listened_seconds IS NULL AND seconds_played_text IS NOT NULL THEN 'unreadable_seconds'
        WHEN listened_seconds < 0 THEN 'negative_seconds'
        WHEN listened_seconds > $max_seconds THEN 'absurd_seconds'
        WHEN event = 'stream' AND listened_seconds IS NULL THEN 'null_seconds'
        WHEN event = 'stream' AND listened_seconds < $min_stream_seconds THEN 'too_short'
    END AS reason,
FROM normalised
