"""Full-catalogue retrieval metrics with intervals, baselines, slices, ablations and the report."""
