"""From validated events to labelled examples and point-in-time features."""
