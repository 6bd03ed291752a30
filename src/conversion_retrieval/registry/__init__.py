"""The promotion gate, immutable bundle versions and the champion pointer."""
