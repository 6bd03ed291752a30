"""Checks on the canonical tables (Great Expectations) and the report that shows them."""
