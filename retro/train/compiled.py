"""torch.compile where it works."""

from __future__ import annotations

from collections.abc import Callable

import torch

from retro.model.retro import RetroModel


def compile_or_stay_eager(model: RetroModel, rehearse: Callable[[], object], warn: Callable[[str], None]) -> bool:
    """Compile `model` in place (its state-dict keys stay), whole and with static shapes, and call `rehearse`, one
    forward and backward pass.

    Where compiling fails (no C++ compiler, say) the model stays as it was, `warn` gets one line, and False is
    returned. The random generators are as before in any case; gradients are dropped.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler, OperatorIssue

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        model.static_shapes = True
        model.compile(fullgraph=True, dynamic=False)
        try:
            rehearse()
        except (TorchDynamoException, CppCompileError, InvalidCxxCompiler, OperatorIssue) as error:
            model._compiled_call_impl = None
            model.static_shapes = False
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            warn(f"compile: true does not work here, training runs without it ({type(error).__name__}: {reason})")
            return False
        finally:
            model.zero_grad(set_to_none=True)
    return True
