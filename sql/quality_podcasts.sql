-- Grain: one row: figures of the podcasts table as the models will read it.
-- Inputs: podcasts (view over extract's table). Parameters: none.
-- `wordings`: different texts once digits are taken out; "Item 17" and "Item 18" say the same to a text model.
WITH worded AS (
    SELECT
        podcast_id, title, description, category, language, published_on,
        NULLIF(
            TRIM(REGEXP_REPLACE(LOWER(CONCAT_WS(' ', title, description)), '[0-9]+', '', 'g')), ''
        ) AS wording,
    FROM podcasts
)

SELECT
    COUNT(*) AS rows,
    COUNT(*) - COUNT(DISTINCT podcast_id) AS repeated_ids,
    COUNT(*) FILTER (WHERE title IS NULL) AS without_title,
    COUNT(*) FILTER (WHERE description IS NULL) AS without_description,
    COUNT(*) FILTER (WHERE title IS NULL AND description IS NULL) AS without_text,
    COUNT(DISTINCT wording) AS wordings,
    COUNT(*) FILTER (WHERE category IS NULL) AS without_category,
    COUNT(*) FILTER (WHERE language IS NULL) AS without_language,
    COUNT(*) FILTER (WHERE published_on IS NULL) AS without_published_on,
FROM worded
