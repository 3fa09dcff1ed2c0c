-- Grain: one row a row of source.tracks that is visible on $as_of; `reason` tells why
--   a row does not enter the catalogue: 'null_id', 'duplicate_id' (another row of the same version) or
--   'superseded' (a later valid_from; normal, not a fault).
-- Inputs: source.tracks. Parameters: $as_of DATE.
WITH visible AS (
    SELECT
        NULLIF(TRIM(track_id), '') AS track_id,
        NULLIF(TRIM(title), '') AS title,
        NULLIF(TRIM(artist_id), '') AS artist_id,
        NULLIF(TRIM(genre), '') AS genre,
        valid_from,
    FROM source.tracks
    WHERE
        (valid_from IS NULL OR valid_from < $as_of + INTERVAL 1 DAY)
),

numbered AS (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY track_id ORDER BY valid_from DESC NULLS LAST, title NULLS LAST, artist_id NULLS LAST, genre NULLS LAST) AS number,
        FIRST_VALUE(valid_from) OVER (PARTITION BY track_id ORDER BY valid_from DESC NULLS LAST, title NULLS LAST, artist_id NULLS LAST, genre NULLS LAST) AS newest,
    FROM visible
)

SELECT
    track_id, title, artist_id, genre,
    CASE
        WHEN track_id IS NULL THEN 'null_id'
        WHEN number > 1 AND valid_from IS DISTINCT FROM newest THEN 'superseded'
        WHEN number > 1 THEN 'duplicate_id'
    END AS reason,
FROM numbered
ORDER BY track_id, number
