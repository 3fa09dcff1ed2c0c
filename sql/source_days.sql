-- Grain: one row a day with source events up to $as_of (day NULL: rows of no believable day): the digest that
--   says whether anything about the day changed. Order-free: a count and a sum of row hashes.
-- Inputs: source.music_events, source.podcast_events, source.audiobook_events. Parameters: $as_of DATE; $late_days INTEGER.
-- A row's folder enters only as what it decides (in time, too late, too early), so a move between folders that
--   changes nothing changes no digest.
WITH hashed AS (
    SELECT
        occurred_at, arrived_on,
        HASH('music', user_id, track_id, event, occurred_at, occurred_at_text, seconds_played_text) AS row_hash,
    FROM source.music_events
    UNION ALL
    SELECT
        occurred_at, arrived_on,
        HASH('podcast', user_id, podcast_id, event, occurred_at, occurred_at_text, seconds_played_text),
    FROM source.podcast_events
    UNION ALL
    SELECT
        occurred_at, arrived_on,
        HASH('audiobook', user_id, audiobook_id, event, occurred_at, occurred_at_text, seconds_played_text),
    FROM source.audiobook_events
),

placed AS (
    SELECT
        CASE WHEN occurred_at >= TIMESTAMP '2000-01-01' THEN CAST(occurred_at AS DATE) END AS day,
        HASH(
            row_hash,
            COALESCE(arrived_on < CAST(occurred_at AS DATE), false),
            COALESCE(arrived_on > CAST(occurred_at AS DATE) + $late_days, false)
        ) AS row_hash,
    FROM hashed
    WHERE
        (occurred_at >= TIMESTAMP '2000-01-01' AND occurred_at < $as_of + INTERVAL 1 DAY)
        OR (
            (occurred_at IS NULL OR occurred_at < TIMESTAMP '2000-01-01')
            AND COALESCE(arrived_on <= $as_of, true)
        )
)

SELECT day, COUNT(*) AS rows, SUM(row_hash::HUGEINT) AS sum_of_hashes,
FROM placed
GROUP BY day
ORDER BY day NULLS FIRST
