"""Files that an exported pipeline carries with it. They need diffusers, torch, numpy and pillow alone."""
