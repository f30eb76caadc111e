"""What is this? Masks, source models, data sets and planned runs, described before anything runs."""
