"""`retro train CONFIG.yaml [key=value ...]`: train RETRO, or a GPT with the same code.

Several processes: `retro launch configs/launch/local.yaml -- retro train CONFIG.yaml`, or torchrun with
`-m retro.cli.train`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retro.config.command_line import CommandParser
from retro.config.errors import EXIT_REQUEUE, ConfigError, RetroError
from retro.config.loader import load_config
from retro.config.train import TrainConfig
from retro.train.signals import Interrupted, StopRequest, stop_on_signal

if TYPE_CHECKING:
    from retro.data.qa.prepared import PreparedQuestions
    from retro.data.tokenizer import Tokenizer
    from retro.eval.answer_scorer import AnswerScorer


def build_parser() -> argparse.ArgumentParser:
    """The command line of `retro train`."""
    parser = CommandParser(
        prog="retro train",
        description="Train a model. Started again with the same configuration it resumes from its newest checkpoint.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/train/tiny_retro.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override fields of the file")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print parameters, memory by part, operations and time on the hardware of section plan "
        "(plan.devices=64 plan.device=H100 plan.mfu=0.3 ...), and refuse what cannot fit",
    )
    parser.add_argument("--json", action="store_true", help="with --plan: as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when all steps are made; EXIT_REQUEUE (75) when SIGTERM, SIGUSR1 or SIGUSR2 stopped the run after a
    step and its checkpoint is written; 130 for SIGINT; 128 + number for a second signal, without a checkpoint. Errors
    are RetroError. The main process also writes the code into the file that RETRO_EXIT_FILE names, 1 for what nobody
    expected; until then there is no such file."""
    # Before torch is imported, which takes seconds: a signal is noted from here on.
    with stop_on_signal() as request:
        _say_exit_code(None)
        try:
            code = _main(argv, request)
        except RetroError as error:
            _say_exit_code(error.exit_code)
            raise
        except Interrupted as interrupted:
            code = 128 + interrupted.signal
            print(
                f"ended at once by a second signal ({interrupted.signal.name}), without a checkpoint; the same command "
                "resumes from the newest one",
                file=sys.stderr,
            )
        except BrokenPipeError as error:
            _say_exit_code(1)
            # `retro` ends well where the reader of its output has gone; for a run that would mean that it is complete.
            raise RuntimeError(
                "what the run writes to has gone (a pipe behind stdout or stderr, a worker, wandb's process); the same "
                "command resumes from the newest checkpoint"
            ) from error
        except Exception:
            _say_exit_code(1)
            raise
        _say_exit_code(code)
        return code


def _main(argv: Sequence[str] | None, request: StopRequest) -> int:
    arguments = build_parser().parse_args(argv)
    config = load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.plan:
        return _plan(config, arguments.json)
    if arguments.json:
        raise ConfigError("--json: is read with --plan only; remove it")
    from retro.train.run import train

    stopped = train(config, request, _open_scorer).stopped_by
    if stopped is None:
        return 0
    return 128 + stopped if stopped == signal.SIGINT else EXIT_REQUEUE


def _open_scorer(config: TrainConfig, prepared: PreparedQuestions, tokenizer: Tokenizer) -> AnswerScorer:
    """Early stopping asks the model as `retro eval` does, which training by itself cannot."""
    from retro.config.qa import parse_arm
    from retro.eval.answer_scorer import AnswerScorer

    qa, stopping = config.qa, config.early_stopping
    assert qa is not None and stopping is not None
    return AnswerScorer(
        prepared.task,
        prepared.read(qa.validation_split)[: stopping.questions],
        parse_arm(qa.arm),
        qa.layout,
        tokenizer,
        chunk_length=config.model.chunk_length,
        precision=config.precision,
        batch=stopping.batch,
    )


def _say_exit_code(code: int | None) -> None:
    """torchrun and srun hide the codes of what they start; whoever asks for it finds it in a file. None = not known
    yet: that of an earlier attempt goes."""
    from launch.exit_file import forget, from_environment, write_exit_code

    file = from_environment()
    if file is None or os.environ.get("RANK", "0") != "0":
        return
    if code is None:
        forget(file)
    else:
        write_exit_code(file, code)


def _plan(config: TrainConfig, as_json: bool) -> int:
    from retro.train.plan.plan import make_plan
    from retro.train.plan.remedies import check_fits
    from retro.train.plan.report import render_plan

    plan = make_plan(config)
    print(json.dumps(plan.to_dict(), indent=2) if as_json else render_plan(plan))
    check_fits(plan)
    return 0


if __name__ == "__main__":
    from retro.cli.main import run_command

    raise SystemExit(run_command(lambda: main(sys.argv[1:])))
