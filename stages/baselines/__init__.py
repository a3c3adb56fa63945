"""Other hashing methods, and the real-valued upper references, on the same features and through the same metrics."""
