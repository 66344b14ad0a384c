"""Score every training sample, keep a few."""
