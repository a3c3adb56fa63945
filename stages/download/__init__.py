"""Stage ``download``: from the outside world to verified image shards with splits."""
