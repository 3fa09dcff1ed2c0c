"""The pages that explain runs, releases and recommendations, for people behind Airflow's login (docs/pages.md)."""
