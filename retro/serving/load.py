"""Open what a configuration names: checkpoint, release, retriever and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retro.artifacts.retrieval_rule import PopularityRule, RetrievalRule, open_rule
from retro.config.errors import ConfigError
from retro.config.generation import SamplingConfig
from retro.config.serving import ServeConfig
from retro.inference.checkpoint import open_checkpoint
from retro.retrieval.policy import Never, RetrievalPolicy, parse_policy
from retro.retrieval.rule_policy import rule_policy
from retro.serving.served_model import GenerationOptions, ServedModel

if TYPE_CHECKING:
    from retro.inference.retro_lm import RetroLM


def open_served_model(config: ServeConfig) -> ServedModel:
    """The model of `retro serve`. Raises ConfigError and ArtifactError subclasses."""
    from retro.inference.opening import open_language_model

    rule = None if config.policy is None else open_rule(config.policy)
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
    if lm.retriever is None and config.num_neighbors is not None:
        raise ConfigError("num_neighbors: nothing is retrieved (a model without retrieval, or switched off); remove it")
    if lm.retriever is None and rule is not None:
        raise ConfigError("policy: this model is a GPT, it retrieves nothing; remove it")
    chunk_length = lm.model.config.chunk_length
    if lm.window_length <= chunk_length:
        raise ConfigError(
            f"window_length: expected more than one chunk of {chunk_length} tokens, found {lm.window_length}"
        )
    name = config.model_name or (checkpoint.run.resolve().name if checkpoint.run else checkpoint.folder.resolve().name)
    return serve_language_model(lm, name, config.slots, checkpoint.fingerprint, rule)


def serve_language_model(
    lm: RetroLM, name: str, slots: int, fingerprint: str = "", rule: RetrievalRule | None = None
) -> ServedModel:
    """A RetroLM as a served model. rule: decides for each prompt that does not say itself when to retrieve."""
    from retro.inference.requests import EngineRequest

    retrieves = lm.retriever is not None
    num_neighbors = lm.num_neighbors if retrieves else 0
    chunk_length = lm.model.config.chunk_length

    def find_policy(options: GenerationOptions) -> RetrievalPolicy:
        default = "policy" if rule is not None else "on" if retrieves else "off"
        spelled = default if options.retrieve is None else options.retrieve
        if spelled == "policy" and rule is not None:
            return rule_policy(rule, options.relation, options.popularity)
        for field in ("relation", "popularity"):
            if getattr(options, field) is not None:
                why = (
                    f"retrieve is {spelled!r}" if isinstance(rule, PopularityRule) else "this server has no such policy"
                )
                raise ConfigError(f"{field}: is read by a policy of popularity, and {why}; leave it out")
        if spelled == "policy":
            raise ConfigError(
                "retrieve: expected on, off, every:TOKENS or adaptive:THRESHOLD, this server has no policy"
            )
        return parse_policy(spelled, chunk_length)

    def make_request(options: GenerationOptions) -> EngineRequest:
        policy = find_policy(options)
        if not retrieves and not isinstance(policy, Never):
            raise ConfigError(f"retrieve: expected off, this server retrieves nothing; found {options.retrieve!r}")
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
            policy=policy,
            num_neighbors=options.num_neighbors,
            logprobs=options.logprobs,
        )

    return ServedModel(
        name=name,
        tokenizer=lm.tokenizer,
        chunk_length=chunk_length,
        window_length=lm.window_length,
        num_neighbors=num_neighbors,
        database=lm.database,
        build_engine=lambda: lm.build_engine(slots),
        make_request=make_request,
        slots=slots,
        fingerprint=fingerprint,
        policy=None if rule is None else rule.kind,
    )
