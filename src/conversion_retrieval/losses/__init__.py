"""Sampled softmax, its corrections, the advertiser-level loss and their combination."""
