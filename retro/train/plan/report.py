"""The plan as text."""

from __future__ import annotations

from retro.train.plan.devices import GIB, MIB
from retro.train.plan.parameters import PARTS
from retro.train.plan.plan import Plan
from retro.train.plan.remedies import PART_NAMES


def render_plan(plan: Plan) -> str:
    """All of the plan, for people."""
    blocks = [_title(plan), _parameters(plan), _work(plan), _memory(plan), _storage(plan), [summary(plan)]]
    return "\n\n".join("\n".join(block) for block in blocks)


def summary(plan: Plan) -> str:
    """The plan in one sentence, as the recipes' headers quote it."""
    work, layout = plan.work, plan.layout
    parts = [
        f"{_count(sum(plan.parameters.values()))} parameters",
        f"{_count(work.tokens)} tokens in {work.steps:,} steps",
        f"{_gib(plan.memory.total)}{_of_memory(plan)} on each of {layout.devices} {plan.device.name}"
        if layout.devices > 1
        else f"{_gib(plan.memory.total)}{_of_memory(plan)} on one {plan.device.name}",
    ]
    if work.days is not None and work.device_hours is not None:
        parts.append(
            f"{_duration(work.days)} = {_hours(work.device_hours)} device-hours at {_percent(plan)} of the peak"
        )
    return "Plan: " + "; ".join(parts) + "."


def _title(plan: Plan) -> list[str]:
    config, layout, model = plan.config, plan.layout, plan.model
    kind = "RETRO" if model.is_retro else "GPT"
    lines = [f"{config.name}: {kind}, {model.num_layers} layers of width {model.width:,}, {config.precision}"]
    spread = []
    if layout.shard > 1:
        spread.append(f"weights sharded over {layout.shard}")
    if layout.tensor > 1:
        spread.append(f"tensor parallelism over {layout.tensor}")
    if layout.replicas > 1:
        spread.append(f"{layout.replicas} replicas")
    where = f"{layout.devices} x {plan.device.name}" if layout.devices > 1 else f"one {plan.device.name}"
    lines.append(f"on {where}" + (f": {', '.join(spread)}" if spread else ""))
    return lines


def _parameters(plan: Plan) -> list[str]:
    retro = plan.model.is_retro
    lines = [f"{'Parameters':<34}{'RETRO' if retro else 'GPT':>16}" + f"{'GPT of the same decoder':>28}" * retro]
    names = {"cross_attention": "cross-attention", "head": "head (vocabulary projection)"}
    if plan.model.tie_embeddings:
        names["head"] = "head (tied to the embedding)"
    rows = [(names.get(part, part), plan.parameters[part], plan.gpt_parameters[part]) for part in PARTS]
    for name, own, gpt in [*rows, ("all", sum(plan.parameters.values()), sum(plan.gpt_parameters.values()))]:
        lines.append(f"  {name:<32}{own:>16,}" + (f"{gpt:>28,}" if retro else ""))
    return lines


def _work(plan: Plan) -> list[str]:
    work, layout, config = plan.work, plan.layout, plan.config
    count = "1 micro-batch" if layout.micro_batches == 1 else f"{layout.micro_batches} micro-batches"
    who = "group of devices" if layout.tensor > 1 else "device"
    batches = f"per {who} {count} of {layout.micro_batch}"
    exact = f" ({work.tokens:,})" if work.tokens >= 1e6 else ""
    whole = f"{_count(work.tokens)} tokens{exact}, {_count(work.sequences)} sequences"
    operations = f"{work.flops_per_token / 1e9:.3g} GFLOP per token"
    if plan.model.is_retro:
        more = work.flops_per_token / work.gpt_flops_per_token - 1
        gpt = "GPT, all of it trained" if config.freeze_backbone else "GPT"
        operations += f" ({more:+.0%} to the {gpt}), {config.plan.neighbor_share:.0%} of the chunks with neighbors"
    lines = [
        "Work",
        f"  {'a step':<16}{work.sequences_per_step:,} sequences x {config.sequence_length:,} = "
        f"{work.tokens_per_step:,} tokens, {batches}",
        f"  {'the run':<16}{work.steps:,} steps, {whole}",
        f"  {'operations':<16}{operations}",
        f"  {'':<16}{_operations(work.flops_per_step)} a step, {_operations(work.flops)} in all",
    ]
    if work.step_seconds is None or work.days is None or work.device_hours is None:
        missing = "peak_tflops" if plan.device.on_cpu else "plan.device or peak_tflops"
        return [*lines, f"  {'time':<16}not known without {missing}"]
    lines.append(
        f"  {'time':<16}{_duration(work.days)}, {_hours(work.device_hours)} device-hours, "
        f"{work.step_seconds:.3g} s a step, at {_percent(plan)} of {plan.device.tflops:g} TFLOP/s (plan.mfu)"
    )
    return lines


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    unit, size_of = ("GiB", GIB) if memory.total >= 4 * GIB else ("MiB", MIB)
    lines = [f"{'Memory of a device at its peak':<42}{unit:>8}"]
    for name, size in memory.device.items():
        if size == 0:
            continue
        part, note = name.removeprefix("activations_"), ""
        if part in plan.config.activation_checkpointing:
            note = f"   ({memory.unchecked[part] / size_of:.2f} without activation checkpointing)"
        lines.append(f"  {_part_name(plan, name):<40}{size / size_of:>8.2f}{note}")
    note = ""
    if plan.device.memory is not None:
        note = f"   of {plan.device.memory / size_of:.1f}: " + ("fits" if plan.fits else "DOES NOT FIT")
    lines.append(f"  {'all':<40}{memory.total / size_of:>8.2f}{note}")
    return lines


def _part_name(plan: Plan, name: str) -> str:
    if name == "weight_copies":
        return "gathered weights" if plan.layout.shard > 1 else "weights cast to bfloat16"
    if name == "optimizer":
        return "optimizer state (Muon, AdamW)" if plan.config.optimizer == "muon" else "optimizer state (AdamW)"
    return PART_NAMES[name]


def _storage(plan: Plan) -> list[str]:
    memory, kept = plan.memory, plan.checkpoints_kept
    lines = ["Checkpoints"]
    lines.append(
        f"  {'on disk':<16}{_bytes(memory.checkpoint)} each; up to {kept} at a time, {_bytes(kept * memory.checkpoint)}"
    )
    if memory.staging:
        who = "each process" if plan.layout.shard > 1 else "the process that writes"
        lines.append(f"  {'while written':<16}{_bytes(memory.staging)} of host memory in {who} (async_checkpoints)")
    return lines


def _of_memory(plan: Plan) -> str:
    return "" if plan.device.memory is None else f" of {plan.device.memory / GIB:.1f}"


def _percent(plan: Plan) -> str:
    return f"{plan.config.plan.mfu * 100:g} %"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _bytes(size: int) -> str:
    """Files are measured in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _count(number: float) -> str:
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:.4g}{unit}"
    return f"{number:,}"


def _operations(number: float) -> str:
    for unit, factor in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number / 1e9:.3g} GFLOP"


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:.1f} days"
    hours = days * 24
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.2g} seconds"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"
