"""torch.compile where it works: the whole model, or layer by layer where layers are gathered from several processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from retro.model.retro import RetroModel
from retro.train.trainer import Trainer

#: Steps of a decoder layer that are compiled by themselves in the layer that has the neighbors encoded: the encoder's
#: layers are gathered in the middle of it, which no compiled program can contain.
_STEPS = ("attend_sequence", "retrieve", "finish")


def compile_or_stay_eager(
    model: RetroModel, rehearse: Callable[[], object], warn: Callable[[str], None], by_layer: bool = False
) -> bool:
    """Compile `model` in place (its state-dict keys stay), with static shapes, and call `rehearse`, one forward and
    backward pass.

    by_layer: every layer by itself instead of all of it, as sharded models want it: gathering is no part of a compiled
    program; embedding and loss are not compiled then. Where compiling fails (no C++ compiler, say) the model stays as
    it was, `warn` gets one line, and False is returned. The random generators are as before in any case; gradients are
    dropped.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, OperatorIssue

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        model.static_shapes = True
        if by_layer:
            _compile_layers(model)
        else:
            model.compile(fullgraph=True, dynamic=False)
        try:
            rehearse()
        except (TorchDynamoException, CppCompileError, InvalidCxxCompiler, OperatorIssue) as error:
            _undo(model)
            model.static_shapes = False
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            warn(f"compile: true does not work here, training runs without it ({type(error).__name__}: {reason})")
            return False
        finally:
            model.zero_grad(set_to_none=True)
    return True


def why_not_compiled(device: torch.device) -> str:
    """What is in the way of compiling for `device`, in one line; empty where it works.

    A sharded model is not rehearsed to find that out: a process that gave up would leave the others waiting.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, fullgraph=True, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return ""


def _compile_layers(model: RetroModel) -> None:
    first = next((layer for layer in model.layers if layer.cross_attention is not None), None)
    for layer in model.layers:
        for name in _STEPS if layer is first else ("forward",):
            _compile_method(layer, name)
    if model.encoder is not None:
        for layer in model.encoder.layers:
            _compile_method(layer, "forward")


def _compile_method(module: nn.Module, name: str) -> None:
    # An attribute of the object, not of the class; hooks of a call run outside.
    setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False))


def _undo(model: RetroModel) -> None:
    model._compiled_call_impl = None
    for module in model.modules():
        for name in ("forward", *_STEPS):
            module.__dict__.pop(name, None)


def compile_trainer(trainer: Trainer, log: logging.Logger) -> None:
    """Compile the model that `trainer` trains, or say why it stays as it is. All processes call it."""
    started = time.perf_counter()
    # Straight from the data set: the loader's position must stay where it is.
    loader = trainer.loader
    batch = loader.dataset.__getitems__([i % len(loader.dataset) for i in range(loader.micro_batch)])
    trainer.model.train()
    processes = trainer.processes
    sharded = processes.sharded  # then a pass without the exchange of gradients would leave them behind
    if processes.mesh is not None:
        reason = why_not_compiled(processes.device)
        failed = [rank for rank, (works,) in enumerate(processes.gather([float(not reason)])) if not works]
        if failed:
            log.warning(f"compile: true does not work in process(es) {failed}, training runs without it ({reason})")
            return
    rehearse = partial(trainer.forward_backward, batch, last=sharded)
    if compile_or_stay_eager(trainer.model, rehearse, log.warning, by_layer=sharded):
        log.info(f"compiled in {time.perf_counter() - started:.0f} s (not counted as training time)")
