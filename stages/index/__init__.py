"""Stage ``index``: the database codes as a faiss index on disk, with what a search shows of the images."""
