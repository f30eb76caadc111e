"""Clusters, pools, progress and run folders: what a run needs and no algorithm does."""
