"""Layers: pure torch modules without a notion of corpora, files or training."""
