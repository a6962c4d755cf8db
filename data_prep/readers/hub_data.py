"""Data sets of the `datasets` library: a local folder, a saved data set, or a name on the hub with its commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from retro.config.errors import ArtifactError, ArtifactMissingError

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk writes
_SHARD_ROWS, _MOST_SHARDS = 20_000, 256


def is_local(path: str) -> bool:
    """Whether the data set is a folder on this machine."""
    return Path(path).is_dir()


def resolve_commit(path: str, revision: str | None, where: str) -> str:
    """Commit of a data set on the hub. Asks the hub unless `revision` is a full commit.

    where: the configuration's name of the path. Raises ArtifactMissingError where the hub does not know the name or
    cannot be reached.
    """
    if revision is not None and _COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:  # the hub client raises many kinds, network libraries more
        raise ArtifactMissingError(
            f"{where} {path!r}: neither a local folder nor found on the hub ({one_line(error)}); correct the path, "
            "give a commit as revision to work from the local cache, or read local files"
        ) from None
    if not commit:
        raise ArtifactError(f"{where} {path!r}: the hub names no commit; give a revision")
    return str(commit)


def open_data_set(
    path: str, name: str | None, split: str, revision: str | None, where: str, *, streaming: bool = True
) -> Any:
    """One split, an iterable of records. Raises ArtifactError with the library's own words where it cannot be opened.

    streaming: nothing is written to the library's cache; without it a data set of the hub is kept there, and is found
    there when there is no network. Local folders are streamed in any case.
    """
    import datasets

    local = is_local(path)
    try:
        if local and any((Path(path) / file).is_file() for file in _SAVED):
            saved = datasets.load_from_disk(path)
            if isinstance(saved, datasets.DatasetDict):
                saved = saved[split]
            # A fixed rule, because ids contain the shard.
            return saved.to_iterable_dataset(num_shards=min(_MOST_SHARDS, 1 + len(saved) // _SHARD_ROWS))
        return datasets.load_dataset(path, name, split=split, revision=revision, streaming=local or streaming)
    except Exception as error:
        raise ArtifactError(
            f"{where} {path!r} (name {name!r}, split {split!r}): cannot be opened: {one_line(error)}"
        ) from None


def one_line(error: BaseException) -> str:
    """Type and first words of an error of another library."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
