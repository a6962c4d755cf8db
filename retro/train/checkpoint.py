"""Checkpoints of a run, for those that only save, list and load them: see retro.train.checkpointing."""

from retro.artifacts.checkpoint_folders import latest_checkpoint as latest_checkpoint
from retro.artifacts.checkpoint_folders import list_checkpoints as list_checkpoints
from retro.train.checkpointing.folders import remove_leftovers as remove_leftovers
from retro.train.checkpointing.identity import CHECKPOINT_KIND as CHECKPOINT_KIND
from retro.train.checkpointing.identity import Identity as Identity
from retro.train.checkpointing.identity import check_identity as check_identity
from retro.train.checkpointing.identity import describe_differences as describe_differences
from retro.train.checkpointing.load import load_checkpoint as load_checkpoint
from retro.train.checkpointing.save import Resumed as Resumed
from retro.train.checkpointing.save import save_checkpoint as save_checkpoint
