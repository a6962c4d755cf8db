"""What a preparation costs: chunks, bytes on disk per stage, memory of the index, hours. Arithmetic only.

Bytes follow the formats (docs/formats.md) and data_prep/index_size.py; hours are amounts of work divided by rates
(data_prep/rates.py), each of which has a source. tests/data_prep/test_cost_model.py holds the model against published
figures (Borgeaud et al. 2022; Wang et al. 2023, InstructRetro) and against a database that was really built.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_prep.index_size import IndexSize, index_size
from data_prep.rates import Rates
from data_prep.workload import Workload
from retro.retrieval.index_choice import choose_factory

# Chunks that the rates of embedding are counted in: the cost of one is proportional to its tokens.
_REFERENCE_CHUNK = 64
_KMEANS_ROUNDS = 10
# Per document: MinHash signature of 4 bytes a value, digest 16, key 8, end of its record 8, split 1; of each band 8.
_SIGNATURE_BYTES, _SIGNED_BYTES, _BAND_BYTES = 4, 33, 8
# Per document of a token store: offset, key, group, end of its record, rank, place in the shuffle, 8 each.
_TOKEN_DOCUMENT_BYTES = 48
# Per chunk: start, document, span, 8 each. Per document: the lookup of its first chunk.
_CHUNK_BYTES, _LOOKUP_BYTES = 24, 16
# Per neighbor: id 8, distance 4. Per BM25 posting: chunk 4, count 2, weight 4.
_NEIGHBOR_BYTES, _POSTING_BYTES = 12, 10
# Per vector encoded by a shard: list 4, id 8, and the code; these files stay beside the merged index.
_ENTRY_BYTES = 12
_HOUR = 3600.0


@dataclass(frozen=True)
class StageCost:
    """bytes on disk; gpu_hours, cpu_hours (core-hours) of work; shards: how many workers it can use at once (None: as
    many as the corpus has files); hours: elapsed, with the workers and GPUs given (None: not asked for)."""

    stage: str
    bytes: float
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    shards: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Plan:
    """documents, chunks: of the database; query_chunks: rows of the neighbor tables; reason: of an automatic index;
    index: its size (None: BM25); index_memory: bytes to search it from memory; train_sample, probes: as assumed."""

    documents: float
    chunks: float
    query_chunks: float
    factory: str
    reason: str
    index: IndexSize | None
    index_memory: float
    train_sample: float
    probes: int | None
    stages: list[StageCost]

    def total(self, name: str) -> float:
        """Sum of a number over the stages."""
        return sum(getattr(stage, name) or 0.0 for stage in self.stages)


def count_chunks(tokens: float, documents: float, chunk_length: int) -> float:
    """Chunks of documents that are cut separately: the last one of each is half full on average.

    tokens / M + documents (M - 1) / 2M, the mean of ceil(length / M) for lengths that spread over many chunks.
    """
    return tokens / chunk_length + documents * (chunk_length - 1) / (2 * chunk_length)


def embedding_bytes(chunks: float, dimension: int, storage: str) -> float:
    """Bytes of the vectors."""
    return chunks * dimension * (2 if storage == "float16" else 4)


def plan(work: Workload, rates: Rates, workers: int | None = None, gpus: int | None = None) -> Plan:
    """Costs of every stage. workers: CPU cores, for elapsed hours; gpus: None = as the rates are, 0 = none.

    Raises ConfigError for an index whose size is not known or a rate that the set does not have.
    """
    kept = work.tokens * (1 - work.held_out)
    length = rates["tokens_per_document"]
    all_documents, documents = work.tokens / length, kept / length
    chunks = count_chunks(kept, documents, work.chunk_length)
    asked = kept if work.query_tokens is None else work.query_tokens
    query_chunks = count_chunks(asked, asked / length, work.chunk_length)
    factory, reason = work.factory, ""
    if factory == "auto":
        choice = choose_factory(round(chunks), work.dimension, work.memory_budget_gb)
        factory, reason = choice.factory, choice.reason
    stages = _text_stages(work, rates, all_documents, chunks)
    size, memory, sample, probes = None, 0.0, 0.0, None
    if factory == "bm25":
        postings = kept * rates["bm25_postings_per_token"]
        memory = postings * _POSTING_BYTES
        work_chunks = chunks * work.chunk_length / _REFERENCE_CHUNK
        hours = work_chunks / rates["bm25_index_chunks_per_core_s"] / _HOUR
        stages.append(StageCost("build_index", memory, cpu_hours=hours, shards=_shards(chunks, 262144)))
        seconds = rates["bm25_search_ms_per_million"] / 1000 * chunks / 1e6
    else:
        size = index_size(factory, work.dimension)
        memory = size.in_memory(chunks) if factory != "exact" else embedding_bytes(chunks, work.dimension, "float32")
        probes = None if size.lists is None else work.probes or max(8, size.lists // 1024)
        sample = min(chunks, work.train_sample or _train_sample(size))
        stages += _vector_stages(work, rates, chunks, size, sample, gpus)
        seconds = _search_seconds(work, rates, chunks, size, probes)
    stages.append(
        StageCost(
            "find_neighbors",
            query_chunks * work.keep * _NEIGHBOR_BYTES,
            cpu_hours=query_chunks * seconds / _HOUR,
            shards=_shards(query_chunks, work.neighbor_shard),
        )
    )
    if workers is not None:
        stages = [dataclasses.replace(stage, hours=_elapsed(stage, workers, gpus)) for stage in stages]
    return Plan(documents, chunks, query_chunks, factory, reason, size, memory, sample, probes, stages)


def _text_stages(work: Workload, rates: Rates, documents: float, chunks: float) -> list[StageCost]:
    """ingest, deduplicate, tokenize, chunk: of all tokens, held-out ones too, except for the chunks."""
    text = work.tokens * rates["text_bytes_per_token"]
    stored = text / rates["compression"]
    record = rates["record_bytes_per_document"]
    megabytes = text / 1e6
    found = [StageCost("ingest", stored + 8 * documents, cpu_hours=megabytes / rates["ingest_mb_per_core_s"] / _HOUR)]
    if work.deduplicate is not None:
        signed = documents * (_SIGNATURE_BYTES * work.deduplicate + _SIGNED_BYTES + record / 6)
        bands = documents * _BAND_BYTES * work.deduplicate / 9
        hours = megabytes / rates["deduplicate_mb_per_core_s"] / _HOUR
        found.append(StageCost("deduplicate", stored + 2 * signed + bands, cpu_hours=hours))
    tokens = work.tokens * work.token_bytes + documents * (_TOKEN_DOCUMENT_BYTES + record)
    hours = megabytes / rates["tokenize_mb_per_core_s"] / _HOUR
    # A shard is a 64th of the stored documents, within 1 and 256 MiB.
    found.append(StageCost("tokenize", tokens, cpu_hours=hours, shards=max(64, _shards(stored, 256 << 20))))
    all_chunks = chunks / (1 - work.held_out)
    hours = all_chunks / rates["chunk_chunks_per_core_s"] / _HOUR
    size = all_chunks * _CHUNK_BYTES + documents * _LOOKUP_BYTES
    found.append(StageCost("chunk", size, cpu_hours=hours, shards=max(64, _shards(documents, 1 << 20))))
    return found


def _vector_stages(
    work: Workload, rates: Rates, chunks: float, size: IndexSize, sample: float, gpus: int | None
) -> list[StageCost]:
    """embed, train_index, build_index. Vectors of query chunks that are in the database are read, not made again."""
    units = chunks * work.chunk_length / _REFERENCE_CHUNK
    vectors = embedding_bytes(chunks, work.dimension, work.storage)
    shards = _shards(chunks, work.embed_shard)
    if work.embedder == "lexical":
        hours = units / rates["lexical_chunks_per_core_s"] / _HOUR
        found = [StageCost("embed", vectors, cpu_hours=hours, shards=shards)]
    elif gpus != 0 and "embed_chunks_per_gpu_hour" in rates:
        found = [StageCost("embed", vectors, gpu_hours=units / rates["embed_chunks_per_gpu_hour"], shards=shards)]
    else:
        hours = units / rates["embed_chunks_per_core_s"] / _HOUR
        found = [StageCost("embed", vectors, cpu_hours=hours, shards=shards)]
    if size.factory == "exact":
        return found
    operations = 2.0 * sample * (size.lists or 0) * size.width * _KMEANS_ROUNDS / 1e9
    if gpus != 0 and "train_gflops_per_gpu" in rates:
        train = StageCost(
            "train_index", size.fixed, gpu_hours=operations / rates["train_gflops_per_gpu"] / _HOUR, shards=1
        )
    else:
        train = StageCost(
            "train_index", size.fixed, cpu_hours=operations / rates["train_gflops_per_core"] / _HOUR, shards=1
        )
    encoded = chunks * (size.code + _ENTRY_BYTES) if size.plain_lists else 8 * chunks
    hours = chunks / rates["encode_vectors_per_core_s"] / _HOUR
    index = StageCost(
        "build_index", size.on_disk(chunks) + encoded, cpu_hours=hours, shards=_shards(chunks, work.index_shard)
    )
    return [*found, train, index]


def _search_seconds(work: Workload, rates: Rates, chunks: float, size: IndexSize, probes: int | None) -> float:
    """Core-seconds of the search of one chunk."""
    if "search_ms_per_chunk" in rates:
        return rates["search_ms_per_chunk"] / 1000
    if size.factory == "exact":
        read = chunks * work.dimension * 4
    elif size.lists is not None and probes is not None:
        read = chunks * min(1.0, probes / size.lists) * size.code
    elif size.links:
        read = min(chunks, (work.ef_search or 64) * size.links / 4) * size.code
    else:
        read = chunks * size.code
    return read / (rates["scan_mb_per_core_s"] * 1e6)


def _train_sample(size: IndexSize) -> float:
    """As the stage train_index draws: 64 for each list within bounds, and never fewer than faiss' 39 for each."""
    lists = size.lists or 0
    return max(min(4_000_000, max(65_536, 64 * lists)), 39 * lists)


def _shards(rows: float, size: int) -> int:
    return max(1, int(-(-rows // size)))


def _elapsed(stage: StageCost, workers: int, gpus: int | None) -> float | None:
    """Hours with so many cores and GPUs, of which a stage can use no more than it has shards."""
    if stage.gpu_hours and not gpus:
        return None
    most = stage.shards if stage.shards is not None and stage.stage != "train_index" else None
    cores, cards = (count if most is None else min(count, most) for count in (workers, gpus or 1))
    return max(stage.cpu_hours / cores, stage.gpu_hours / cards)
