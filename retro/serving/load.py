"""Open what a configuration names: checkpoint, release, retriever and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retro.config.evaluation import SamplingConfig
from retro.config.serving import ServeConfig
from retro.inference.checkpoint import open_checkpoint
from retro.serving.served_model import GenerationOptions, ServedModel

if TYPE_CHECKING:
    from retro.inference.retro_lm import RetroLM


def open_served_model(config: ServeConfig) -> ServedModel:
    """The model of `retro serve`. Raises ConfigError and ArtifactError subclasses."""
    from retro.inference.retro_lm import open_language_model

    checkpoint = open_checkpoint(config.checkpoint)
    lm, _ = open_language_model(
        checkpoint,
        release=config.release,
        database=config.database,
        num_neighbors=config.num_neighbors,
        window_length=config.window_length,
        retrieval=config.retrieval == "on",
        device=config.device,
        precision=config.precision,
    )
    name = config.model_name or (checkpoint.run.resolve().name if checkpoint.run else checkpoint.folder.resolve().name)
    return serve_language_model(lm, name, config.slots, checkpoint.fingerprint)


def serve_language_model(lm: RetroLM, name: str, slots: int, fingerprint: str = "") -> ServedModel:
    """A RetroLM as a served model."""
    from retro.inference.engine import Engine, EngineRequest
    from retro.retrieval.policy import parse_policy

    retrieves = lm.evidence is not None

    def make_request(options: GenerationOptions) -> Any:
        return EngineRequest(
            prompt=options.prompt,
            max_new_tokens=options.max_new_tokens,
            sampling=SamplingConfig(
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=options.seed,
                repetition_penalty=options.repetition_penalty,
            ),
            until=options.stop,
            policy=parse_policy(options.retrieve or ("on" if retrieves else "off")),
            logprobs=options.logprobs,
        )

    return ServedModel(
        name=name,
        tokenizer=lm.tokenizer,
        chunk_length=lm.model.config.chunk_length,
        window_length=lm.window_length,
        num_neighbors=lm.num_neighbors if retrieves else 0,
        database=lm.database,
        build_engine=lambda: Engine(lm, slots),
        make_request=make_request,
        slots=slots,
        fingerprint=fingerprint,
    )
