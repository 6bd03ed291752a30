"""``python -m conversion_retrieval``."""

from conversion_retrieval.cli import main

main()
