"""SAM's automatic mask generation: an image and a network in, masks out. No Ray and no files."""
