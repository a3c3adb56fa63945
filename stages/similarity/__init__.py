"""Stage ``similarity``: the semantic similarity of the training images from their concepts (UHSCM, step 5)."""
