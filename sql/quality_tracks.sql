-- Grain: one row: figures of the tracks table as the models will read it.
-- Inputs: tracks (view over extract's table). Parameters: none.
SELECT
    COUNT(*) AS rows,
    COUNT(*) - COUNT(DISTINCT track_id) AS repeated_ids,
    COUNT(*) FILTER (WHERE artist_id IS NULL) AS without_artist_id,
    COUNT(DISTINCT artist_id) AS artists,
FROM tracks
