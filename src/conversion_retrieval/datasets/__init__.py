"""Public data sets and the synthetic world, converted to the canonical tables."""
