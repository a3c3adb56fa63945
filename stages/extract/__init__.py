"""Stage ``extract``: CLIP features of every image and of augmented views of the training images."""
