"""Offline stages that turn a corpus into a chunked neighbor database, and the runner that carries them out."""
