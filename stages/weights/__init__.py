"""The ``weights`` stage: the vision-language model, pinned."""
