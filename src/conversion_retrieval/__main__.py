"""``python -m conversion_retrieval``."""

from conversion_retrieval.cli import main

if __name__ == "__main__":
    main()
