"""A transformer encoder as embedder, as RETRO's papers use BERT (Borgeaud et al. 2022, section 2.3).

The vector is the mean of the last layer's hidden states over the real tokens, without the special ones (CLS, SEP, ...);
other poolings for encoders that were trained with them. Nothing is masked for prediction: NVIDIA's embedder feeds BERT
with its pretraining samples, 15% of whose tokens are masked at random, in database and queries alike; here the
probability is always 0. Vectors are not normalised unless asked. Needs the extra `transformers`.

Texts go through the encoder by blocks: sorted by length within the block and cut into batches of `batch_tokens` padded
tokens, while a thread reads and tokenises the next block. Which texts share a batch can change the last bits of a
vector, so the blocks of a stage are functions of its shards alone. On CPU every batch is computed by one thread, as
many at a time as torch has threads, so that the number of cores changes nothing. Another device or other releases of
torch and transformers may change last bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import numpy as np

from retro.config.errors import ConfigError
from retro.config.prep_embed import TransformerConfig
from retro.retrieval.encoder_files import find_encoder
from retro.retrieval.encoder_hardware import find_device, one_thread_per_batch, resolve, set_tokenizer_threads
from retro.retrieval.length_batches import Batch, TokenRows, length_batches, token_rows
from retro.retrieval.read_ahead import read_ahead
from retro.retrieval.vector_check import check_finite

_EXTRA = "install it with `pip install 'retro-pretraining[transformers]'`, or set kind: lexical"


class TransformerEmbedder:
    """A Hugging Face encoder: a local folder, or a name on the hub (downloaded to its cache).

    config: as given, with precision and batch size resolved for the device. The weights are read at the first text.
    Raises ConfigError for what cannot be loaded, in one line.
    """

    version = 2

    def __init__(self, config: TransformerConfig) -> None:
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(f"a transformer embedder needs {error.name}, which is not installed; {_EXTRA}") from None
        self._device = find_device(config.device)
        self._files = find_encoder(config)
        self.config = resolve(config, self._device)
        try:
            # trust_remote_code: never run somebody's code, nor ask on stdin whether to, which is the default.
            self._architecture = transformers.AutoConfig.from_pretrained(self._files.folder, trust_remote_code=False)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                self._files.folder, use_fast=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise self._unusable(error) from None
        if getattr(self._architecture, "is_encoder_decoder", False):
            raise ConfigError(f"transformer.model {config.model!r}: is an encoder and a decoder; choose an encoder")
        set_tokenizer_threads()
        self._check_positions(getattr(self._architecture, "max_position_embeddings", None))

    def _unusable(self, error: Exception) -> ConfigError:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ConfigError(
            f"transformer.model {self.config.model!r}: cannot be loaded from {self._files.folder}: {line}"
        )

    def _check_positions(self, limit: int | None) -> None:
        if limit is not None and self.config.max_length > limit:
            raise ConfigError(
                f"max_length: expected at most {limit}, the encoder's positions, found {self.config.max_length}"
            )

    @property
    def dimension(self) -> int:
        """Width of the encoder."""
        return int(self._architecture.hidden_size)

    @property
    def metric(self) -> Literal["l2", "ip"]:
        """As configured."""
        return self.config.metric

    def identity(self) -> dict[str, Any]:
        """Hashes of weights, config.json and tokenizer files, and the recipe; not where the files lie."""
        return {
            "kind": "transformer",
            "version": self.version,
            **self._files.hashes(),
            "dimension": self.dimension,
            "pooling": self.config.pooling,
            "mask_prob": 0.0,
            "lower_case": self._lower_case(),
            "max_length": self.config.max_length,
            "normalise": self.config.normalise,
            "metric": self.config.metric,
            "precision": self.config.precision,
            "batch_tokens": self.config.batch_tokens,
        }

    def _lower_case(self) -> bool:
        normalizer = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None)
        if normalizer is None:
            return bool(getattr(self._tokenizer, "do_lower_case", False))
        return bool(normalizer.normalize_str("A") != "A")

    @cached_property
    def _model(self) -> Any:
        import torch
        import transformers

        options = {
            "dtype": torch.bfloat16 if self.config.precision == "bf16" else torch.float32,
            "use_safetensors": True,  # never unpickle somebody's weights
            "trust_remote_code": False,
        }
        load = functools.partial(transformers.AutoModel.from_pretrained, self._files.folder, **options)
        try:
            with _without_progress_bar():
                try:
                    model = load(attn_implementation="sdpa")
                except ValueError:  # an architecture without it
                    model = load()
        except Exception as error:  # safetensors and torch have their own for damaged files and sizes that do not fit
            raise self._unusable(error) from None
        for name, module in model.named_modules():
            # Some families count positions from behind the padding's: 514 of them are 512.
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                first = 0 if module.padding_idx is None else module.padding_idx + 1
                self._check_positions(module.num_embeddings - first)
        return model.eval().to(self._device)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimension]; zero for a text of which no real token remains.

        Raises RetroError for a text whose vector is not finite.
        """
        vectors = next(iter(self.embed_blocks([texts])))
        check_finite(vectors, lambda row: f"text {row}")
        return vectors

    def embed_blocks(self, blocks: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
        """float32 [n, dimension] for each block of texts, in order. `blocks` is consumed by a thread of its own."""
        run = self._start_on_gpu if self._device.type == "cuda" else self._run_on_cpu
        previous = None
        for texts in read_ahead(self._tokenise(block) for block in blocks):
            # A GPU works on this block while the one before is copied and consumed.
            started = run(texts)
            if previous is not None:
                yield self._finish(previous)
            previous = started
        if previous is not None:
            yield self._finish(previous)

    def _tokenise(self, texts: Sequence[str]) -> TokenRows:
        if len(texts) == 0:
            return token_rows([], [])
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.config.max_length,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            split_special_tokens=True,  # a chunk that writes about "[SEP]" does not end there
        )
        return token_rows(encoded["input_ids"], encoded["special_tokens_mask"])

    def _batches(self, texts: TokenRows) -> Iterator[Batch]:
        return length_batches(texts, self.config.batch_tokens, int(self._tokenizer.pad_token_id or 0))

    def _run_on_cpu(self, texts: TokenRows) -> Any:
        import torch

        out = torch.zeros((len(texts), self.dimension), dtype=torch.float32)
        batches = list(self._batches(texts))
        if not batches:
            return out
        encode = self._encoder()
        with one_thread_per_batch() as threads:
            if threads == 1 or len(batches) == 1:
                for batch in batches:
                    out[torch.from_numpy(batch.rows)] = encode(batch)
                return out
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for batch, vectors in zip(batches, pool.map(encode, batches), strict=True):
                    out[torch.from_numpy(batch.rows)] = vectors
        return out

    def _start_on_gpu(self, texts: TokenRows) -> Any:
        """Vectors on the device; the work goes on when this returns."""
        import torch

        encode = self._encoder()
        out = torch.zeros((len(texts), self.dimension), dtype=torch.float32, device=self._device)
        for batch in self._batches(texts):
            out[self._to_device(batch.rows)] = encode(batch)
        return out

    def _to_device(self, array: np.ndarray) -> Any:
        import torch

        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    def _encoder(self) -> Any:
        """The function from a Batch to its vectors: float32 [b, dimension] on the device."""
        import torch

        model, pooling = self._model, self.config.pooling

        def encode(batch: Batch) -> Any:
            weights = pooling_weights(batch, pooling)
            with torch.inference_mode():
                hidden = model(
                    input_ids=self._to_device(batch.ids),
                    # Without padding there is nothing to mask, and attention has a faster kernel.
                    attention_mask=None if batch.present.all() else self._to_device(batch.present.astype(np.int64)),
                ).last_hidden_state
                return torch.einsum("bnd,bn->bd", hidden.float(), self._to_device(weights))

        return encode

    def _finish(self, vectors: Any) -> np.ndarray:
        out: np.ndarray = vectors.cpu().numpy()
        if self.config.normalise:
            norms = np.linalg.norm(out, axis=1, keepdims=True)
            out /= np.where(norms > 0, norms, 1.0)
        return out


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Loading takes a second, and every worker process would draw one."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def pooling_weights(batch: Batch, pooling: Literal["mean", "mean_all", "cls"]) -> np.ndarray:
    """Share of each hidden state in the vector: float32 [b, w]; all 0 for a row without a real token."""
    real = batch.present & ~batch.special
    chosen = real
    if pooling == "mean_all":
        chosen = batch.present
    elif pooling == "cls":
        chosen = np.zeros_like(real)
        chosen[:, 0] = True
    chosen = chosen & real.any(axis=1, keepdims=True)
    count = np.maximum(chosen.sum(axis=1, keepdims=True), 1)
    return (chosen / count).astype(np.float32)
