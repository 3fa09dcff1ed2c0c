"""What reaches the person on call: alerts, where they go, and the callbacks that Airflow calls."""
