"""The HTTP service: recommendations from the champion, and a client for them."""
