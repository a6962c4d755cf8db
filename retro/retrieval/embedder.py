"""The embedder interface, the identity of a recipe, and how an embedder artifact is opened.

One embedder serves database and queries: the artifact of kind "embedder" (recipe.json, and what was fitted) is an
input of the embeddings, they are an input of the index, and the index opens the same embedder for its queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from retro.artifacts.fingerprint import canonical_json
from retro.artifacts.manifest import open_manifest
from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError

EMBEDDER_KIND = "embedder"
RECIPE_NAME = "recipe.json"

Metric = Literal["l2", "ip"]


@runtime_checkable
class Embedder(Protocol):
    """Text to vector. A text without content has the zero vector, which is never retrieved and retrieves nothing."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    def metric(self) -> Metric:
        """Distance of two vectors: "l2" squared Euclidean, "ip" negated inner product."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides a vector (weights, pooling, ...), JSON-able. Equal identities give equal vectors."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimension]."""

    def embed_blocks(self, blocks: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
        """`embed` of each block, in order; it may read ahead. Values are not checked for being finite."""


def check_recipe(expected: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Raise ArtifactMismatchError, naming what differs, unless both identities are equal."""
    if canonical_json(expected) == canonical_json(found):
        return
    keys = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    detail = ", ".join(f"{k}: expected {expected.get(k)!r}, found {found.get(k)!r}" for k in keys)
    raise ArtifactMismatchError(
        f"{where}: embedded with another recipe ({detail}); queries and database must share one embedder: "
        "embed again with the database's"
    )


def write_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Write recipe.json of an embedder artifact: {"kind", "identity", "options"}."""
    (folder / RECIPE_NAME).write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """Content of recipe.json. Raises ArtifactCorruptError where it is not one."""
    path = Path(folder) / RECIPE_NAME
    try:
        recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(recipe["kind"], str) or not all(isinstance(recipe[k], dict) for k in ("identity", "options")):
            raise ValueError("fields of the wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorruptError(f"{path}: not a recipe ({error}); make the embedder again") from None
    return recipe


def open_embedder(folder: str | Path, device: str = "auto") -> Embedder:
    """The embedder of a finished artifact of kind "embedder".

    Raises ArtifactError subclasses; ArtifactMismatchError if the encoder's weights are no longer the recorded ones.
    """
    folder = Path(folder)
    open_manifest(folder, EMBEDDER_KIND)
    recipe = read_recipe(folder)
    kind, identity, options = recipe["kind"], recipe["identity"], recipe["options"]
    embedder: Embedder
    if kind == "lexical":
        from retro.retrieval.lexical import open_lexical

        embedder = open_lexical(folder, options)
    elif kind == "transformer":
        from retro.config.loader import from_dict
        from retro.config.prep_embed import TransformerConfig
        from retro.retrieval.transformer import TransformerEmbedder

        config = from_dict(TransformerConfig, {**options, "device": device}, str(folder / RECIPE_NAME))
        embedder = TransformerEmbedder(config)
    else:
        raise ArtifactCorruptError(f"{folder / RECIPE_NAME}: unknown kind of embedder {kind!r}; make it again")
    check_recipe(identity, embedder.identity(), str(folder))
    return embedder
