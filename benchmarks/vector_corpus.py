"""Chunks and embeddings for benchmarks, made by the stages themselves of a text corpus."""

from __future__ import annotations

from pathlib import Path

from benchmarks.text_corpus import read_texts, write_documents
from data_prep.chunk import ChunkStage
from data_prep.embed import EmbedStage, FitEmbedderStage
from data_prep.runner import Executor, run_stage
from data_prep.tokenize_documents import TokenizeStage
from data_prep.train_tokenizer import TokenizerStage
from retro.config.prep_embed import EmbedConfig, LexicalConfig, TransformerConfig
from retro.config.prep_tokens import ChunkConfig, SentencePieceConfig, TokenizerConfig, TokensConfig


def build_chunks(root: Path, corpus: Path | None, megabytes: float, length: int, workers: int) -> tuple[Path, bool]:
    """(chunks of `length` tokens of the corpus' first megabytes, whether it had to be used more than once)."""
    texts, repeated = read_texts(corpus, int(megabytes * 1e6))
    executor = Executor(workers)
    documents = write_documents(root / "documents", texts)
    train = TokenizerConfig(train=SentencePieceConfig(vocab_size=8192, max_characters=4_000_000))
    tokenizer = run_stage(TokenizerStage(train, documents), root, executor)
    tokens = run_stage(TokenizeStage(TokensConfig(), documents, tokenizer), root, executor)
    return run_stage(ChunkStage(ChunkConfig(length), tokens), root, executor), repeated


def build_embeddings(root: Path, chunks: Path, model: str | None, dimension: int, workers: int) -> Path:
    """Embeddings of the chunks: of the transformer in the folder `model`, else lexical ones."""
    config = EmbedConfig(lexical=LexicalConfig(dimension=dimension), storage="float16")
    if model is not None:
        config = EmbedConfig(kind="transformer", transformer=TransformerConfig(model=model), storage="float16")
    executor = Executor(workers)
    embedder = run_stage(FitEmbedderStage(config, chunks), root, executor)
    return run_stage(EmbedStage(config, chunks, embedder), root, executor)
