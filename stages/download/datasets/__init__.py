"""The data sets: one module each, from an official distribution or a user's collection to a stream of records."""
