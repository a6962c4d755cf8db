"""Checkpoints as models of EleutherAI's lm-evaluation-harness (extra "harness"; docs/qa.md, Harness).

`retro harness` is the harness's command line with the model "retro"; in Python the import of retro.eval.harness.model
registers it for `lm_eval.simple_evaluate(model="retro", ...)`. Nothing else in the project imports lm_eval.
"""

from __future__ import annotations

from pathlib import Path


def tasks_folder() -> Path:
    """Folder with the tasks that are read from local files, for TaskManager(include_path=...)."""
    return Path(__file__).parent / "tasks"
