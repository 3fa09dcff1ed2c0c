-- Grain: one row a row of source.audiobooks that is visible on $as_of (published by then, or undated); `reason` tells why
--   a row does not enter the catalogue: 'null_id', 'duplicate_id' (another row of the same version) or
--   'superseded' (a later valid_from; normal, not a fault).
-- Inputs: source.audiobooks. Parameters: $as_of DATE.
WITH visible AS (
    SELECT
        NULLIF(TRIM(audiobook_id), '') AS audiobook_id,
        NULLIF(TRIM(title), '') AS title,
        NULLIF(TRIM(description), '') AS description,
        NULLIF(TRIM(author), '') AS author,
        NULLIF(TRIM(genre), '') AS genre,
        NULLIF(LOWER(TRIM(language)), '') AS language,
        published_on,
        valid_from,
    FROM source.audiobooks
    WHERE
        (valid_from IS NULL OR valid_from < $as_of + INTERVAL 1 DAY)
        AND (published_on IS NULL OR published_on <= $as_of)
),

numbered AS (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY audiobook_id ORDER BY valid_from DESC NULLS LAST, title NULLS LAST, description NULLS LAST, author NULLS LAST, genre NULLS LAST, language NULLS LAST, published_on NULLS LAST) AS number,
        FIRST_VALUE(valid_from) OVER (PARTITION BY audiobook_id ORDER BY valid_from DESC NULLS LAST, title NULLS LAST, description NULLS LAST, author NULLS LAST, genre NULLS LAST, language NULLS LAST, published_on NULLS LAST) AS newest,
    FROM visible
)

SELECT
    audiobook_id, title, description, author, genre, language, published_on,
    CASE
        WHEN audiobook_id IS NULL THEN 'null_id'
        WHEN number > 1 AND valid_from IS DISTINCT FROM newest THEN 'superseded'
        WHEN number > 1 THEN 'duplicate_id'
    END AS reason,
FROM numbered
ORDER BY audiobook_id, number
