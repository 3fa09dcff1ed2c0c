-- Grain: one row: figures of the users table as the models will read it.
-- Inputs: users (view over extract's table). Parameters: none.
SELECT
    COUNT(*) AS rows,
    COUNT(*) - COUNT(DISTINCT user_id) AS repeated_ids,
    COUNT(*) FILTER (WHERE country IS NULL) AS without_country,
    COUNT(*) FILTER (WHERE birth_year IS NULL) AS without_birth_year,
FROM users
