"""The file that an exported pipeline carries with it. It needs diffusers, torch, numpy and pillow alone."""
