"""Stage ``mine``: which concepts the images show, by a vision-language model (UHSCM, steps 1-4)."""
