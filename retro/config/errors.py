"""Errors that a user can cause. Each carries one line for the user and the exit code of the command.

Exit codes: 2 usage or configuration; 3 an input artifact is missing, unfinished, corrupt or does not belong.
"""

from __future__ import annotations

#: EX_TEMPFAIL: training was told to stop (time limit, preemption) and its checkpoint is written; run the same command
#: again. Launchers put such a job back into the queue.
EXIT_REQUEUE = 75


class RetroError(Exception):
    """Base of every error that is reported as one line without a traceback.

    said_by_another: another process of the same run has the same error and reports it, so that 64 processes do not say
    it 64 times."""

    exit_code = 1
    said_by_another = False


class ConfigError(RetroError):
    """The command line or a configuration file is wrong."""

    exit_code = 2


class ArtifactError(RetroError):
    """An input artifact cannot be used."""

    exit_code = 3


class ArtifactMissingError(ArtifactError):
    """Nothing is there."""


class ArtifactUnfinishedError(ArtifactError):
    """A folder without a manifest: the run that makes it has not ended."""


class ArtifactCorruptError(ArtifactError):
    """The content is not what the manifest recorded (truncated, altered, not readable)."""


class ArtifactMismatchError(ArtifactError):
    """Whole in itself, but made with another configuration or from other inputs."""
