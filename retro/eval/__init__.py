"""Evaluation: tasks write responses once; metrics are pure functions over the stored responses.

Importing this package loads no torch.
"""
