"""New releases out of finished ones: documents added, documents removed, another database. The old ones stay."""
