"""Images, labels, class sets and augmentation."""
