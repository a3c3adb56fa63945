"""Stage ``explain``: what the bits of a trained network mean, and what the components have recovered."""
