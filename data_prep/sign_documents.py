"""Stage sign_documents: what documents are compared by, and which of them are exact duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.banding import band_hashes, choose_bands
from data_prep.external_sort import find_repeats, sort_runs
from data_prep.minhash import Signatures, text_digest
from data_prep.signed_documents import (
    DIGEST,
    SURVIVAL_ORDER,
    SignedDocuments,
    SignedShard,
    SignedWriter,
    signed_shards,
)
from data_prep.stage import Shard, ShardResult, Stage
from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactError, ArtifactMismatchError
from retro.config.loader import to_dict
from retro.config.prep import DeduplicateConfig
from retro.data.document import DOCUMENTS_KIND, Document, document_files, document_key, read_documents
from retro.data.npy_file import NpyReader, NpyWriter
from retro.data.sharded_array import load_array

SIGNATURES_KIND = "signatures"
EXACT_NAME = "exact.npy"
EXACT = np.dtype([("dropped", "<u8"), ("kept", "<u8")])
_DIGESTED = np.dtype([("high", "<u8"), ("low", "<u8"), ("precedence", "<u8"), ("number", "<u8")])
_PLACES = {split: place for place, split in enumerate(SURVIVAL_ORDER)}
# Documents are signed together, which is several times faster than one by one.
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 2048, 4 << 20
_BLOCK_ROWS = 1 << 17
_SHOWN = 5
_BASE = "base-"  # begins the names of the shards that hold bands of the base's documents


def deduplicate_settings(config: DeduplicateConfig) -> dict[str, Any]:
    """The options that are read: without near duplicates none of the others is."""
    return to_dict(config) if config.near else {"near": False}


class SignDocumentsStage(Stage):
    """Key, digest and MinHash signature of every document, and the exact duplicates among them.

    Exact: equal text after `normalise`; the first in the order of survival (`precedence`) is kept. With a base (a
    finished artifact of the stage deduplicate) its documents come first, and are neither read again nor dropped.

    Per shard the files of data_prep/signed_documents.py and, with `near`, `bands-00000.npy` uint64 [bands, n]; those
    of the base's shards are named `bands-base-00000.npy`. At the end `exact.npy`, records of (dropped, kept) numbers of
    documents, by the first. Memory: one file of documents; external sorts at the end.

    Raises ArtifactMismatchError for a base that was made with other options, and ArtifactError if a document has the
    id of a document of the base.
    """

    name = "sign_documents"
    version = 1
    kind = SIGNATURES_KIND

    def __init__(self, config: DeduplicateConfig, documents: Path, base: Path | None = None) -> None:
        """`documents`: folder of a finished documents artifact; `base`: of one to which they are to be added."""
        self.deduplicate = config
        self.permutations = config.permutations if config.near else 0
        self.layout = choose_bands(config.threshold, config.permutations) if config.near else (0, 0)
        settings = deduplicate_settings(config)
        settings.pop("bucket_candidates", None)  # another number of comparisons, the same signatures
        super().__init__(settings, {"documents": documents} | ({} if base is None else {"base": base}))

    @cached_property
    def _signatures(self) -> Signatures:
        return Signatures(self.deduplicate)

    @cached_property
    def _base_shards(self) -> list[SignedShard]:
        if "base" not in self.inputs:
            return []
        base = self.inputs["base"]
        manifest = open_manifest(base, DOCUMENTS_KIND)
        check_base(base, manifest.config, deduplicate_settings(self.deduplicate))
        return signed_shards(base, manifest, 0, new=False)

    def plan(self) -> list[Shard]:
        """One shard per file of documents, then one per shard of the base, where these need bands."""
        shards = [
            Shard(f"{i:05d}", {"file": path.name}) for i, path in enumerate(document_files(self.inputs["documents"]))
        ]
        if self.deduplicate.near:
            shards += [Shard(f"{_BASE}{i:05d}", {"base": i}) for i in range(len(self._base_shards))]
        else:
            _ = self._base_shards  # checked all the same
        return shards

    def run_shard(self, shard: Shard, out: Path) -> ShardResult:
        """Sign the documents of one file, or lay out the bands of one shard of the base. Rows: documents signed."""
        if "base" in shard.spec:
            found = self._base_shards[shard.spec["base"]]
            path = found.folder / f"signatures-{found.name}.npy"
            self._write_bands(path, out / f"bands-{shard.name}.npy", found.rows)
            return ShardResult(0, {"base_documents": found.rows})
        with SignedWriter(out, shard.name, self.permutations) as writer:
            for batch in _batches(read_documents(self.inputs["documents"] / shard.spec["file"])):
                writer.append(
                    [document.id for document in batch],
                    np.array([document_key(document.id) for document in batch], dtype=np.uint64),
                    np.array([_PLACES[document.split] for document in batch], dtype=np.uint8),
                    np.frombuffer(b"".join(text_digest(document.text) for document in batch), dtype=DIGEST),
                    self._signatures.signatures([document.text for document in batch]) if self.permutations else None,
                )
        if self.deduplicate.near:
            path = out / f"signatures-{shard.name}.npy"
            self._write_bands(path, out / f"bands-{shard.name}.npy", writer.count)
        return ShardResult(writer.count)

    def finish(self, folder: Path, out: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Refuse ids that the base has; find the exact duplicates."""
        shards = list(self._base_shards)
        first = base_documents = sum(shard.rows for shard in shards)
        for record in records:
            if not record["name"].startswith(_BASE):
                shards.append(SignedShard(folder, record["name"], first, int(record["rows"]), new=True))
                first += shards[-1].rows
        if base_documents:
            self._check_ids(shards, out)
        dropped = find_exact(shards, base_documents, out)
        return {"documents": first, "base_documents": base_documents, "exact_duplicates": dropped}

    def summary(self, stats: dict[str, Any], rows: int) -> str:
        """One line for people."""
        bands = f", {self.layout[0]} bands of {self.layout[1]} values" if self.deduplicate.near else ""
        base = f" beside {stats['base_documents']:,} of the base" if stats["base_documents"] else ""
        return f"{rows:,} documents{base}, {stats['exact_duplicates']:,} exact duplicates{bands}"

    def _write_bands(self, signatures: Path, path: Path, rows: int) -> None:
        """uint64 [bands, rows], band by band, so that one of them is read without the others."""
        bands, width = self.layout
        stored = load_array(signatures, np.uint32, (rows, self.permutations), map_file=True)
        with open(path, "wb") as file:
            header = {"descr": "<u8", "fortran_order": False, "shape": (bands, rows)}
            np.lib.format.write_array_header_1_0(file, header)
            begin = file.tell()
            for start in range(0, rows, _BLOCK_ROWS // 16):
                block = np.asarray(stored[start : start + _BLOCK_ROWS // 16])
                hashes = band_hashes(block, bands, width)
                hashes[:, block.min(axis=1) == np.uint32(0xFFFFFFFF)] = 0  # no words, nothing to compare
                # Written, not mapped: a full disk is then an error instead of a signal that kills the process.
                for band in range(bands):
                    file.seek(begin + 8 * (band * rows + start))
                    file.write(hashes[band].astype("<u8").data)

    def _check_ids(self, shards: list[SignedShard], out: Path) -> None:
        every = sort_runs((shard.array("keys") for shard in shards), out / ".keys.npy", np.uint64)
        examples: list[int] = []
        count = 0
        for key in find_repeats(every):
            count += 1
            examples += [key] if len(examples) < _SHOWN else []
        every.unlink()
        if not count:
            return
        names: set[str] = set()
        signed = SignedDocuments(shards, self.permutations)
        for shard in signed.new:
            here = np.flatnonzero(np.isin(shard.array("keys"), np.array(examples, dtype=np.uint64)))
            names |= set(signed.ids(shard.first + here))
        raise ArtifactError(
            f"{count:,} documents to be added have ids that the base {self.inputs['base']} has already: "
            f"{', '.join(repr(name) for name in sorted(names))}; remove those documents from the base first, "
            "or leave them out"
        )


def check_base(base: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ArtifactMismatchError unless the base was made with the options on which signatures depend."""
    for option in ("near", "shingle_words", "permutations", "seed"):
        if expected.get(option) != found.get(option):
            raise ArtifactMismatchError(
                f"{base}: expected deduplicate.{option} {expected.get(option)!r}, found {found.get(option)!r}; "
                "documents are added with the options of the base, or the base is made again with these"
            )


def find_exact(shards: list[SignedShard], base_documents: int, out: Path) -> int:
    """Write `exact.npy`: of every set of documents of one digest all but the first to survive. Returns how many.

    Documents of the base are not dropped.
    """

    def digested() -> Iterator[np.ndarray]:
        for shard in shards:
            digests = shard.array("digests")
            records = np.empty(shard.rows, dtype=_DIGESTED)
            records["high"], records["low"] = digests["high"], digests["low"]
            records["precedence"] = shard.precedence()
            records["number"] = np.arange(shard.first, shard.first + shard.rows, dtype=np.uint64)
            yield records

    ordered = sort_runs(digested(), out / ".digests.npy", _DIGESTED)
    found = out / ".exact.npy"
    with NpyWriter(found, EXACT) as writer:
        last: np.ndarray | None = None  # the kept one of the set that is not at its end
        for block in NpyReader(ordered).blocks(_BLOCK_ROWS):
            rows = block if last is None else np.concatenate([last, block])
            begins = np.ones(len(rows), dtype=bool)
            begins[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
            kept = np.flatnonzero(begins)[np.cumsum(begins) - 1]
            gone = ~begins & (rows["number"] >= np.uint64(base_documents))
            pairs = np.empty(int(gone.sum()), dtype=EXACT)
            pairs["dropped"], pairs["kept"] = rows["number"][gone], rows["number"][kept[gone]]
            writer.append(pairs)
            last = rows[kept[-1:]].copy()
    ordered.unlink()
    sort_runs([found], out / EXACT_NAME, EXACT)
    found.unlink()
    return writer.rows


def open_signed(signatures: Path) -> SignedDocuments:
    """The documents of a finished signatures artifact, those of its base first."""
    manifest = open_manifest(signatures, SIGNATURES_KIND)
    shards: list[SignedShard] = []
    if "base" in manifest.inputs:
        base = input_path(signatures, manifest, "base")
        shards = signed_shards(base, open_manifest(base, DOCUMENTS_KIND), 0, new=False)
    first = sum(shard.rows for shard in shards)
    own = dataclasses.replace(manifest, shards=[s for s in manifest.shards if not s["name"].startswith(_BASE)])
    shards += signed_shards(signatures, own, first, new=True)
    return SignedDocuments(shards, int(manifest.config.get("permutations", 0)))


def band_file(signatures: Path, shards: list[SignedShard], place: int) -> Path:
    """File of the bands of `shards[place]` in a signatures artifact."""
    shard = shards[place]
    return signatures / f"bands-{shard.name if shard.new else f'{_BASE}{place:05d}'}.npy"


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
