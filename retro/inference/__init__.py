"""Using a trained model: checkpoints, scoring, generation with live retrieval. Importing this loads no torch."""
