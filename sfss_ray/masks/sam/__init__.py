"""SAM's automatic mask generation: a network and an image in, masks out. No Ray and no storage."""
