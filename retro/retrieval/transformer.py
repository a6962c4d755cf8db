"""A transformer encoder as embedder, as RETRO's papers use BERT (Borgeaud et al. 2022, section 2.3).

The vector is the mean of the last layer's hidden states over the real tokens, without the special ones (CLS, SEP, ...).
No token is masked for prediction and vectors are not normalised unless asked. Needs the extra `transformers`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retro.artifacts.fingerprint import sha256_file
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.prep_embed import TransformerConfig

_WEIGHT_FILES = ("*.safetensors",)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


class TransformerEmbedder:
    """A Hugging Face encoder: a local folder, or a name on the hub (downloaded to its cache)."""

    version = 1

    def __init__(self, config: TransformerConfig) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ConfigError(
                f"a transformer embedder needs {error.name}, which is not installed; "
                "install it with `pip install 'retro-pretraining[transformers]'`, or set kind: lexical"
            ) from None
        self.config = config
        self._torch = torch
        folder = _local_folder(config)
        self._weights_sha256 = _hash_files(folder, _WEIGHT_FILES)
        self._tokenizer_sha256 = _hash_files(folder, _TOKENIZER_FILES)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        try:
            # use_safetensors: never unpickle somebody's weights; trust_remote_code: never run somebody's code, nor ask
            # on stdin whether to, which is the default.
            self._model = transformers.AutoModel.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
            ).eval()
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ConfigError(f"transformer.model {config.model!r}: cannot be loaded from {folder}: {line}") from None
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._model.to(self._device)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and config.max_length > limit:
            raise ConfigError(
                f"max_length: expected at most {limit}, the encoder's positions, found {config.max_length}"
            )

    @property
    def dimension(self) -> int:
        """Width of the encoder."""
        return int(self._model.config.hidden_size)

    @property
    def metric(self) -> Literal["l2", "ip"]:
        """As configured."""
        return self.config.metric

    def identity(self) -> dict[str, Any]:
        """Hashes of weights and tokenizer files, and the recipe; not where the files lie."""
        return {
            "kind": "transformer",
            "version": self.version,
            "weights_sha256": self._weights_sha256,
            "tokenizer_sha256": self._tokenizer_sha256,
            "dimension": self.dimension,
            "pooling": "mean over real tokens without special tokens",
            "lower_case": bool(getattr(self._tokenizer, "do_lower_case", False)),
            "max_length": self.config.max_length,
            "normalise": self.config.normalise,
            "metric": self.config.metric,
            "precision": self.config.precision,
            "batch_tokens": self.config.batch_tokens,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimension]; zero for a text of which no real token remains. Batches are of similar lengths."""
        torch = self._torch
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if len(texts) == 0:
            return out
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.config.max_length,
            return_special_tokens_mask=True,
            return_attention_mask=False,
        )
        rows, special = encoded["input_ids"], encoded["special_tokens_mask"]
        lengths = np.array([len(row) for row in rows])
        pad = self._tokenizer.pad_token_id or 0
        for batch in _batches(lengths, self.config.batch_tokens):
            width = int(lengths[batch].max())
            ids = np.full((len(batch), width), pad, dtype=np.int64)
            attention = np.zeros((len(batch), width), dtype=np.int64)
            pooled = np.zeros((len(batch), width), dtype=np.float32)
            for i, row in enumerate(batch):
                ids[i, : lengths[row]] = rows[row]
                attention[i, : lengths[row]] = 1
                pooled[i, : lengths[row]] = 1.0 - np.asarray(special[row], dtype=np.float32)
            with torch.inference_mode():
                hidden = self._model(
                    input_ids=torch.from_numpy(ids).to(self._device),
                    attention_mask=torch.from_numpy(attention).to(self._device),
                ).last_hidden_state.float()
                weights = torch.from_numpy(pooled).to(self._device)
                total = torch.einsum("bnd,bn->bd", hidden, weights)
                mean = total / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
            out[batch] = mean.cpu().numpy()
        if self.config.normalise:
            norms = np.linalg.norm(out, axis=1, keepdims=True)
            out /= np.where(norms > 0, norms, 1.0)
        return out


def _batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Rows in groups of similar length, each of at most `batch_tokens` tokens when padded to its longest."""
    order = np.argsort(lengths, kind="stable")
    groups: list[np.ndarray] = []
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop - start + 1) * lengths[order[stop]] > batch_tokens:
            groups.append(order[start:stop])
            start = stop
    return groups


def _local_folder(config: TransformerConfig) -> Path:
    folder = Path(config.model)
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise ConfigError(f"transformer.model: folder {config.model!r} not found")
    try:
        from huggingface_hub import snapshot_download

        patterns = [*_WEIGHT_FILES, *_TOKENIZER_FILES, "config.json"]
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        return Path(
            snapshot_download(config.model, revision=config.revision, allow_patterns=patterns, local_files_only=offline)
        )
    except Exception as error:  # the hub client raises many kinds, all meaning "not to be had"
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"transformer.model: {config.model!r} is no local folder and cannot be had from the hub ({line}); "
            "give the path of a downloaded model"
        ) from None


def _hash_files(folder: Path, patterns: Sequence[str]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not files:
        raise ArtifactCorruptError(f"{folder}: expected {' or '.join(patterns)}, found none")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
