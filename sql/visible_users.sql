-- Grain: one row a row of source.users that is visible on $as_of; `reason` as in visible_audiobooks, and
--   'implausible_birth_year' (younger than 5 or older than 120 on $as_of: the user stays, the year becomes NULL).
-- Inputs: source.users. Parameters: $as_of DATE.
WITH visible AS (
    SELECT
        NULLIF(TRIM(user_id), '') AS user_id,
        NULLIF(UPPER(TRIM(country)), '') AS country,
        birth_year AS given_birth_year,
        CASE WHEN birth_year BETWEEN YEAR($as_of) - 120 AND YEAR($as_of) - 5 THEN birth_year END AS birth_year,
        valid_from,
    FROM source.users
    WHERE valid_from IS NULL OR valid_from < $as_of + INTERVAL 1 DAY
),

numbered AS (
    SELECT
        *,
        ROW_NUMBER() OVER (
            PARTITION BY user_id ORDER BY valid_from DESC NULLS LAST, country NULLS LAST, birth_year NULLS LAST
        ) AS number,
        FIRST_VALUE(valid_from) OVER (
            PARTITION BY user_id ORDER BY valid_from DESC NULLS LAST, country NULLS LAST, birth_year NULLS LAST
        ) AS newest,
    FROM visible
)

SELECT
    user_id, country, birth_year,
    CASE
        WHEN user_id IS NULL THEN 'null_id'
        WHEN number > 1 AND valid_from IS DISTINCT FROM newest THEN 'superseded'
        WHEN number > 1 THEN 'duplicate_id'
        WHEN given_birth_year IS NOT NULL AND birth_year IS NULL THEN 'implausible_birth_year'
    END AS reason,
FROM numbered
ORDER BY user_id, number
