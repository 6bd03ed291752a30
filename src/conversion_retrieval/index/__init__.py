"""The FAISS index: built, tuned against exact search, searched."""
