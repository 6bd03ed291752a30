"""Shopping-conversion candidate generation: labels, two-tower model, honest recall, index, gate and registry."""

__version__ = "0.1.0"
