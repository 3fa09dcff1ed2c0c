-- Seven views that map somebody's own tables onto the source tables (docs/source_tables.md).
-- Copy this file, edit it, and set source.uri to it. One view a table; names and columns are the contract's.
--
-- The file is run as it is in an empty DuckDB database, so anything that DuckDB reads can stand here: files,
-- Postgres, S3, Iceberg. Extensions are not loaded by themselves: say INSTALL and LOAD. Keep credentials out of
-- this file. Relative paths start where the command is run.

-- ------------------------------------------------------------------------------------------------------------
-- Local files: this part runs as it is, on a folder `exports/` with files of these names.

CREATE VIEW users AS
SELECT
    account_id AS user_id,
    country_code AS country,
    YEAR(born_on) AS birth_year,
FROM read_csv('exports/accounts.csv', types = {'account_id': 'VARCHAR', 'born_on': 'DATE'});

CREATE VIEW tracks AS
SELECT song_id AS track_id, name AS title, artist AS artist_id, genre,
FROM read_parquet('exports/songs.parquet');

-- A catalogue with a history: `valid_from` says since when a row holds, so that a backfill sees the old one.
CREATE VIEW audiobooks AS
SELECT
    isbn AS audiobook_id,
    title,
    blurb AS description,
    author,
    bisac AS genre,
    LOWER(lang) AS language,
    released AS published_on,
    changed_at AS valid_from,
FROM read_parquet('exports/books/*.parquet', union_by_name = true);

CREATE VIEW podcasts AS
SELECT
    show_id AS podcast_id, title, about AS description, publisher, category, lang AS language,
    NULL::DATE AS published_on,
FROM read_parquet('exports/shows.parquet');

-- Milliseconds become seconds, and local time becomes UTC.
CREATE VIEW music_events AS
SELECT
    account_id AS user_id,
    song_id AS track_id,
    'stream' AS event,
    (played_at AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'UTC' AS occurred_at,
    played_ms // 1000 AS seconds_played,
FROM read_parquet('exports/plays.parquet')
WHERE kind = 'song';

-- Kinds of event get the contract's names; a kind that has none is left out here, knowingly.
CREATE VIEW podcast_events AS
SELECT
    account_id AS user_id,
    show_id AS podcast_id,
    CASE action WHEN 'play' THEN 'stream' WHEN 'subscribe' THEN 'follow' WHEN 'sample' THEN 'preview' END AS event,
    (happened_at AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'UTC' AS occurred_at,
    seconds AS seconds_played,
FROM read_parquet('exports/show_actions.parquet')
WHERE action IN ('play', 'subscribe', 'sample');

CREATE VIEW audiobook_events AS
SELECT
    account_id AS user_id,
    isbn AS audiobook_id,
    CASE action
        WHEN 'play' THEN 'stream'
        WHEN 'wishlist' THEN 'follow'
        WHEN 'sample' THEN 'preview'
        WHEN 'open_checkout' THEN 'intent_to_pay'
    END AS event,
    (happened_at AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'UTC' AS occurred_at,
    seconds AS seconds_played,
FROM read_parquet('exports/book_actions.parquet')
WHERE action IN ('play', 'wishlist', 'sample', 'open_checkout');

-- ------------------------------------------------------------------------------------------------------------
-- Postgres instead: take out the view above and this comment. The password comes from PGPASSWORD or ~/.pgpass.
--
-- INSTALL postgres;
-- LOAD postgres;
-- ATTACH 'host=db.example.org dbname=shop user=reader' AS shop (TYPE postgres, READ_ONLY);
-- CREATE VIEW users AS
-- SELECT id::VARCHAR AS user_id, country, birth_year FROM shop.public.accounts;

-- ------------------------------------------------------------------------------------------------------------
-- S3 instead: the credentials are those of the environment.
--
-- INSTALL httpfs;
-- LOAD httpfs;
-- CREATE SECRET (TYPE s3, PROVIDER credential_chain);
-- CREATE VIEW music_events AS
-- SELECT user_id, track_id, 'stream' AS event, played_at AS occurred_at, seconds_played
-- FROM read_parquet('s3://bucket/plays/*/*.parquet', hive_partitioning = true);

-- ------------------------------------------------------------------------------------------------------------
-- Iceberg instead:
--
-- INSTALL iceberg;
-- LOAD iceberg;
-- CREATE VIEW audiobook_events AS
-- SELECT user_id, audiobook_id, event, occurred_at, seconds_played
-- FROM iceberg_scan('s3://bucket/warehouse/audiobook_events');
