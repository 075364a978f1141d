"""Files that exported pipelines carry with them. They need diffusers, torch, numpy and pillow alone, and import one
another as neighbours."""
