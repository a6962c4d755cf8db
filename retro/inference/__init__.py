"""Using a trained model: checkpoints, scoring, generation with live retrieval. Importing this package loads no torch."""
