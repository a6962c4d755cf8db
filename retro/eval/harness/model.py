"""The model "retro" of lm-evaluation-harness. Importing this module registers it; needs the package lm-eval.

Tokens, truncation and windows are those of the harness's own Hugging Face model (lm_eval.models.huggingface), so that a
GPT has the same numbers as its export has there. A RETRO retrieves: the context is right-aligned, so that the question
ends a chunk and the candidate answer begins one, served by what the question retrieved (Wang et al. 2023, section
4.2.3 and appendix G.2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401 - the harness registers its own models only as long as there is no other
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from retro.config.errors import ConfigError
from retro.config.harness import HarnessConfig
from retro.config.loader import from_dict
from retro.eval.harness.generation import read_generation
from retro.inference.language_model import GenerateRequest, Score, ScoreRequest
from retro.inference.opening import open_language_model
from retro.retrieval.policy import Never, parse_policy

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)

#: Batches that are asked for at once: what a kill costs, and how far lengths can be brought together.
_BLOCK_BATCHES = 16


@register_model("retro")
class RetroHarnessLM(TemplateLM):
    """A checkpoint with its tokenizer and retriever.

    Arguments: those of HarnessConfig. Raises ConfigError and ArtifactError subclasses.
    """

    backend = "causal"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        if isinstance(options.get("retrieve"), bool):  # YAML reads on and off so
            options["retrieve"] = "on" if options["retrieve"] else "off"
        given = {name: value for name, value in options.items() if value is not None}
        config = from_dict(HarnessConfig, given, source="model_args")
        self.config = config
        policy = parse_policy(config.retrieve)
        self.lm, self._release = open_language_model(
            config.checkpoint,
            release=config.release,
            database=config.database,
            num_neighbors=config.num_neighbors,
            retrieval=not isinstance(policy, Never),
            device=_available(config.device),
            precision=config.precision,
            batch=config.batch,
            window_length=config.max_length,
            policy=policy,
        )
        self._chunk = self.lm.model.config.chunk_length
        if self.max_length <= self._chunk:
            raise ConfigError(
                f"model_args: max_length: expected more than one chunk of {self._chunk} tokens, found {self.max_length}"
            )
        parse_policy(config.retrieve, self._chunk)
        if self.lm.retriever is None and (config.num_neighbors is not None or ":" in config.retrieve):
            raise ConfigError(
                "model_args: num_neighbors, retrieve: nothing is retrieved (a GPT, or retrieve=off); remove them"
            )
        self._device = self.lm.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> RetroHarnessLM:
        """What the harness calls. arg_dict: --model_args; additional_config: --batch_size, --max_batch_size and
        --device, which the harness fills in where they are not given: what --model_args say counts."""
        return cls(**{**(additional_config or {}), **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> RetroHarnessLM:
        """As create_from_arg_obj, of "key1=value1,key2=value2"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: the begin-of-text token, with which every document began in training."""
        return self.lm.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """Most tokens that the model sees at once."""
        return self.lm.window_length

    @property
    def max_gen_toks(self) -> int:
        """Most new tokens where a task does not say."""
        return self.config.max_gen_toks

    @property
    def batch_size(self) -> int:
        """Sequences computed side by side."""
        return self.config.batch

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of prompts."""
        return self.lm.tokenizer.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: the weights, the release and the retriever that answered."""
        parameters = sum(p.numel() for p in self.lm.model.parameters())
        identity = {**self.lm.identity(), "release": self._release.fingerprint, "retrieve": self._retrieves}
        return {"model_num_parameters": parameters, "model_dtype": self.config.precision, "model_identity": identity}

    @property
    def _retrieves(self) -> str:
        return self.config.retrieve if self.lm.retriever is not None else "off"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """There is none: raises ConfigError."""
        raise ConfigError("--apply_chat_template: models of this project have no chat template; remove it")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids. add_special_tokens: whether the begin-of-text token is put in front, None = as configured."""
        begins = self.config.add_bos_token if add_special_tokens is None else add_special_tokens
        ids = self.lm.tokenizer.encode(string)
        return [self.prefix_token_id, *ids] if begins else ids

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, special tokens left out."""
        if not skip_special_tokens:
            raise ConfigError("skip_special_tokens: special tokens have no text here; expected true, found false")
        return self.lm.tokenizer.decode(tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(natural log-probability of the continuation, whether it is what greedy decoding would write) each."""
        pairs = [(request.args, *self._split(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, with the border where the harness draws it."""
        if context == "":
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        before, after = self._encode_pair(context, continuation)
        if not after:  # it became part of the context's last token
            after = self.tok_encode(continuation, add_special_tokens=False)
        return before or [self.prefix_token_id], after

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """As `loglikelihood`, of ((context, continuation), ids of the context, ids of the continuation)."""
        answers: dict[int, tuple[float, bool]] = {}
        scored = [self._request(before, after, None) for _, before, after in requests]
        for number, score in self._scores(scored, "loglikelihood", disable_tqdm):
            answers[number] = (score.logprob, score.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return [answers[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural log-probability of each whole text, its windows as full as they can be and scored without overlap.

        Chunks are counted from a window's begin, as in training.
        """
        windows: list[tuple[int, ScoreRequest]] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                before, after = make_disjoint_window(window)
                windows.append((number, self._request(before, after, self._chunk)))
        left = [0] * len(requests)
        for number, _ in windows:
            left[number] += 1
        totals = [0.0] * len(requests)
        for place, score in self._scores([window for _, window in windows], "loglikelihood_rolling", disable_tqdm):
            number = windows[place][0]
            totals[number] += score.logprob
            left[number] -= 1
            if not left[number]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, totals[number])
        return totals

    def _request(self, before: Sequence[int], after: Sequence[int], first_chunk: int | None) -> ScoreRequest:
        """Cut on the left to what the model sees at once; the last token is not read."""
        room = max(1, self.max_length + 1 - len(after))
        return ScoreRequest(tuple(before[-room:]), tuple(after), first_chunk)

    def _scores(self, requests: Sequence[ScoreRequest], what: str, disable_tqdm: bool) -> Iterator[tuple[int, Score]]:
        """(number of the request, its score), the longest first."""
        lengths = [len(request.context) + len(request.continuation) for request in requests]
        order = sorted(range(len(requests)), key=lambda number: -lengths[number])
        with tqdm(total=len(requests), desc=f"retro {what}", disable=disable_tqdm) as bar:
            for block in self._blocks(order):
                scores = self.lm.loglikelihood([requests[number] for number in block])
                for number, score in zip(block, scores, strict=True):
                    assert score is not None
                    yield number, score
                bar.update(len(block))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that the model writes after each context, up to the first of `until`.

        The i-th request draws with torch's seed (the harness's `--seed`) plus i.
        """
        seed = torch.initial_seed() % 2**62
        asked = [
            self._generate_request(request.args[0], request.args[1], seed + number)
            for number, request in enumerate(requests)
        ]
        order = sorted(range(len(asked)), key=lambda number: -len(asked[number].prompt))
        texts: dict[int, str] = {}
        with tqdm(total=len(asked), desc="retro generate_until", disable=disable_tqdm) as bar:
            for block in self._blocks(order):
                results = self.lm.generate_until([asked[number] for number in block])
                for number, result in zip(block, results, strict=True):
                    assert result is not None
                    texts[number] = result.text
                    self.cache_hook.add_partial("generate_until", requests[number].args, result.text)
                bar.update(len(block))
        return [texts[number] for number in range(len(requests))]

    def _generate_request(self, context: str, settings: dict[str, Any], seed: int) -> GenerateRequest:
        read = read_generation(settings, self.max_gen_toks, seed)
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        room = self.max_length - read.max_new_tokens
        if room >= 1:  # otherwise the engine moves its window on while it writes
            prompt = prompt[-room:]
        return GenerateRequest(tuple(prompt), read.max_new_tokens, read.until, sampling=read.sampling)

    def _blocks(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self.lm.batch * _BLOCK_BATCHES
        for start in range(0, len(order), size):
            yield order[start : start + size]


def _available(device: str) -> str:
    """`device`, or what there is where it names a GPU and there is none: the harness's command line always asks for
    one."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        _log.info("device %s: there is none, taken is auto", device)
        return "auto"
    return device
