"""How good a model is: with labels (mIoU) and without (label-free scores)."""
