"""Artifacts: immutable, fingerprinted folders on disk. A folder without a manifest is unfinished, by definition."""
