"""The embedded data set: seeded 64 x 64 scenes with several labels each, and a small model that knows them."""
