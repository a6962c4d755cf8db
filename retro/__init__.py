"""Pretraining language models with retrieval.  Importing `retro` is light: no torch, no faiss."""

__version__ = "0.1.0"
