"""The HTTP service and its pages (not part of the daily workflow yet)."""
