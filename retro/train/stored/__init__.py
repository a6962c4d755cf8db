"""Checkpoints that lie on a disk: described, cut into other files, averaged. Nothing here trains."""
