"""Signals: noted, agreed on, answered after the step with a checkpoint and an exit code; a second one ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from retro.artifacts.checkpoint_folders import list_checkpoints
from retro.artifacts.fingerprint import sha256_file
from retro.cli.train import main
from retro.train import run as run_module
from retro.train import signals
from retro.train.callbacks import checkpointer
from retro.train.callbacks.checkpointer import Checkpointer
from retro.train.callbacks.validator import Validator
from retro.train.signals import Interrupted, StopRequest, held_back, stop_on_signal
from retro.train.trainer import Trainer
from tests.train import releases
from tests.train.ranks import Ranks


def test_the_first_is_noted_its_echo_ignored_and_a_later_one_raises(monkeypatch: pytest.MonkeyPatch):
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    with stop_on_signal() as request:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes on what the scheduler has sent to all
        assert request.signal_number == signal.SIGUSR2
        monkeypatch.setattr(signals, "ECHO_S", 0.0)
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.signal == signal.SIGTERM
    assert before == {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}


def test_only_the_main_process_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    StopRequest().note(signal.SIGTERM)
    assert capfd.readouterr().err == "SIGTERM: stopping after this step, with a checkpoint; again = at once\n"
    monkeypatch.setenv("RANK", "1")
    StopRequest().note(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_processes_that_are_started_while_signals_wait_never_get_them():
    code = "import signal, sys; sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline(); print('alive')"
    with held_back():
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert process.stdout is not None
    process.stdout.readline()
    for number in signals.STOP_SIGNALS:
        process.send_signal(number)
    assert process.communicate("\n", timeout=60)[0] == "alive\n"


def _moments() -> dict[str, tuple[Any, str]]:
    return {
        "start-up": (run_module, "open_data"),
        "building": (run_module, "build_trainer"),
        "compiling": (run_module, "compile_trainer"),
        "first callback": (Checkpointer, "on_start"),
        "step": (Trainer, "forward_backward"),
        "validation": (Validator, "on_step"),
        "checkpoint": (checkpointer, "write_snapshot"),
    }


@pytest.mark.parametrize(
    ("moment", "asynchronous"), [(moment, False) for moment in _moments()] + [("step", True), ("checkpoint", True)]
)
def test_a_signal_at_any_moment_stops_and_the_run_goes_on_as_if_nothing_had_been(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, asynchronous: bool
):
    values = {"async_checkpoints": asynchronous, "compile": moment == "compiling"}
    monkeypatch.setattr(run_module, "compile_trainer", lambda *_: None)
    clean = releases.write_yaml(tmp_path / "c.yaml", releases.settings(release, tmp_path, name="clean", **values))
    assert main([str(clean)]) == 0
    file = releases.write_yaml(tmp_path / "s.yaml", releases.settings(release, tmp_path, name="stopped", **values))
    exit_file = tmp_path / "exit"
    monkeypatch.setenv("RETRO_EXIT_FILE", str(exit_file))
    owner, name = _moments()[moment]
    original, sent = getattr(owner, name), []

    def signalled(*arguments: Any, **options: Any) -> Any:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGUSR1))
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
    assert main([str(file)]) == 75
    assert exit_file.read_text() == "75\n"
    log = (tmp_path / "stopped" / "log.txt").read_text().splitlines()[-1]
    saved = [step for step, _ in list_checkpoints(tmp_path / "stopped" / "checkpoints")]
    if moment in ("start-up", "building", "compiling"):
        assert log.endswith("stopped by SIGUSR1 before a step was taken; nothing is lost, the same command goes on")
        assert saved == []
    else:
        assert log.endswith(f"stopped by SIGUSR1 after step {saved[-1]}; checkpoint written, the same command resumes")
        assert saved[-1] < 8
    assert main([str(file)]) == 0
    assert exit_file.read_text() == "0\n"
    one, two = (tmp_path / run / "checkpoints" / "step_000008" / "model.safetensors" for run in ("clean", "stopped"))
    assert sha256_file(one) == sha256_file(two)
    assert releases.metrics(tmp_path / "clean") == releases.metrics(tmp_path / "stopped")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once(
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int,
    code: int,
):
    monkeypatch.setattr(signals, "ECHO_S", 0.0)
    monkeypatch.setenv("RETRO_EXIT_FILE", str(tmp_path / "exit"))
    original = Trainer.forward_backward

    def twice(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
        if trainer.state.step == 5:
            signal.raise_signal(number)
            signal.raise_signal(number)
        return original(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "forward_backward", twice)
    # A save that does not end must not keep it.
    ended = threading.Event()
    monkeypatch.setattr(checkpointer, "write_snapshot", lambda *_: ended.wait())
    values = releases.settings(release, tmp_path, checkpoint_every=4, validate_every=0, async_checkpoints=True)
    file = releases.write_yaml(tmp_path / "run.yaml", values)
    try:
        assert main([str(file)]) == code
    finally:
        ended.set()
    assert (tmp_path / "exit").read_text() == f"{code}\n"
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    last = capsys.readouterr().err.splitlines()[-1]
    name = signal.Signals(number).name
    assert last.startswith(f"ended at once by a second signal ({name}), without a checkpoint; the same command resumes")


def test_errors_are_in_the_exit_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from retro.config.errors import ConfigError

    monkeypatch.setenv("RETRO_EXIT_FILE", str(tmp_path / "exit"))
    with pytest.raises(ConfigError):
        main([str(tmp_path / "nowhere.yaml")])
    assert (tmp_path / "exit").read_text() == "2\n"
    (tmp_path / "exit").unlink()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError):
        main([str(tmp_path / "nowhere.yaml")])
    assert not (tmp_path / "exit").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(release: Path, tmp_path: Path, rank: int):
    values = releases.settings(release, tmp_path, steps=2000, log_every=1, checkpoint_every=0, validate_every=0)
    file = releases.write_yaml(tmp_path / "run.yaml", values)
    log = tmp_path / "log.txt"
    with Ranks(file, 2, log) as ranks:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and '"step": 3,' in metrics.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        pid = ranks.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        for process in ranks.processes:
            process.join(timeout=120)
        assert [process.exitcode for process in ranks.processes] == [75, 75], log.read_text()
    ((step, _),) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert f"stopped by SIGTERM after step {step}; checkpoint written" in log.read_text()


def test_workers_of_the_loader_live_through_signals_to_all_processes(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A scheduler signals every process of a job, workers that are just starting too."""
    import multiprocessing

    original, seen = Trainer._forward_backward_all, []

    def signalled(trainer: Trainer) -> list[float]:
        first = trainer.state.step == 0
        if first:
            # The workers are started by the first batch that is asked for; meanwhile they are signalled on and on.
            stop = threading.Event()

            def shoot() -> None:
                while not stop.is_set():
                    for child in multiprocessing.active_children():
                        seen.append(child.pid)
                        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
                            os.kill(child.pid or 0, number)
                    time.sleep(0.02)

            thread = threading.Thread(target=shoot, daemon=True)
            thread.start()
        try:
            return original(trainer)
        finally:
            if first:
                stop.set()
                thread.join()

    monkeypatch.setattr(Trainer, "_forward_backward_all", signalled)
    values = releases.settings(release, tmp_path, steps=2, loader_workers=1, validate_every=0)
    assert main([str(releases.write_yaml(tmp_path / "run.yaml", values))]) == 0
    assert seen


@pytest.mark.parametrize("error", [BrokenPipeError("no reader"), ValueError("a mistake")], ids=["pipe", "other"])
def test_what_nobody_expected_is_code_1_and_never_that_of_an_attempt_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """`retro` ends with 0 where the reader of its output has gone; for training that would mean: all steps are made."""
    import retro.cli.train
    from retro.cli.main import run_command

    (tmp_path / "exit").write_text("75\n")
    monkeypatch.setenv("RETRO_EXIT_FILE", str(tmp_path / "exit"))

    def fail(*_: Any) -> int:
        assert not (tmp_path / "exit").exists()  # a kill from here on leaves no code
        raise error

    monkeypatch.setattr(retro.cli.train, "_main", fail)
    with pytest.raises((RuntimeError, ValueError)):
        run_command(lambda: main([]))
    assert (tmp_path / "exit").read_text() == "1\n"
