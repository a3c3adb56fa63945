"""Stage ``encode``: the packed binary codes of queries and database."""
