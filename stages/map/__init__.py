"""A map of the database: a place in the plane for each image, near to those with similar codes."""
