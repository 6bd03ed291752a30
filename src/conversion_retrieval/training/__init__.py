"""Batches, the training loop, checkpoints and data-parallel training."""
