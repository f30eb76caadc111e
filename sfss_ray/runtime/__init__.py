"""Services of a run: clusters, pools of processes, progress, run folders. No algorithm needs them."""
