"""Stage ``components``: fine and coarse semantic components of the training images (DSCH, the first E-step)."""
