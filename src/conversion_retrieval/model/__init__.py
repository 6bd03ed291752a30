"""The two-tower network, one part a module."""
