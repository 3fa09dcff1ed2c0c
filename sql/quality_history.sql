-- Grain: one row: what must hold of first_streamed and first_signal whatever the source held.
-- Inputs: first_streamed, first_signal (views over extract's tables). Parameters: $as_of DATE.
SELECT
    (
        SELECT COUNT(*)
        FROM (SELECT item_type, user_id, item_id, FROM first_streamed GROUP BY ALL HAVING COUNT(*) > 1)
    ) AS repeated_first_streams,
    (SELECT COUNT(*) FROM first_streamed WHERE first_streamed_on > $as_of) AS first_streams_after_as_of,
    (
        SELECT COUNT(*) FROM (SELECT user_id, FROM first_signal GROUP BY ALL HAVING COUNT(*) > 1)
    ) AS repeated_first_signals,
    (SELECT COUNT(*) FROM first_signal WHERE first_signal_on > $as_of) AS first_signals_after_as_of,
