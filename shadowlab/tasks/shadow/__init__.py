"""The shadow task (arXiv 2412.11972): object, mask and light to the grey shadow map of the ground."""
