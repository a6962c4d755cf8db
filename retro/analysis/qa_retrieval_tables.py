"""Tables of retrieval in question answering: recall, its part in the errors, passages, cost, adaptive policies."""

from __future__ import annotations

from retro.analysis.cells import Row, Table, figure, scaled
from retro.analysis.qa import QaComparison
from retro.analysis.qa_policies import Adaptive
from retro.analysis.qa_series import arm_words
from retro.analysis.qa_wording import metric_words, task_words


def recall_table(result: QaComparison) -> Table | None:
    """Recall@k of evidence and answers; None where no evaluation recorded any."""
    rows = []
    names = {"evidence": "an evidence document", "answer": "an answer"}
    ks = sorted({k for recall in result.recalls for by_k in recall.shares.values() for k in by_k})
    for recall in result.recalls:
        for what, by_k in recall.shares.items():
            cells = (names[what], *(f"{100 * by_k[k]:.1f}" if k in by_k else "-" for k in ks))
            rows.append(Row(cells, group=recall.source or "all questions"))
    if not rows:
        return None
    return Table(
        f"Recall of the retriever, %: {task_words(result)}",
        ("among the first k passages", *(f"k = {k}" for k in ks)),
        tuple(rows),
        caption="An evidence document: over the questions that name one. An answer: an accepted answer stands in the "
        "passage, whether or not it answers the question there.",
        optional=tuple(range(len(ks) - 1, 1, -1)),
    )


def errors_table(result: QaComparison) -> Table | None:
    """Which part of the error is retrieval; None without arms that read what was retrieved."""
    labels = result.labels()
    rows = []
    for item in result.retrieval_errors:
        cells = (
            labels[item.series],
            figure(scaled(item.given), 1),
            figure(scaled(item.with_answer), 1),
            figure(scaled(item.without_answer), 1),
            figure(scaled(item.wrong_without), 1),
        )
        rows.append(Row(cells, item.series))
    if not rows:
        return None
    metric = metric_words(result.primary)
    return Table(
        f"Which part of the error is retrieval: {task_words(result)}",
        ("arm", "answer in its passages, %", f"{metric} there, %", f"{metric} elsewhere, %", "errors without it, %"),
        tuple(rows),
        caption="Its passages: those that the model was given. Errors without it: wrong answers to questions whose "
        "passages hold no answer, as a share of all wrong answers: better reading alone would not have helped.",
        optional=(3, 1),
    )


def helps_table(result: QaComparison) -> Table | None:
    """Where retrieval helps and where it hurts, against the reference (Mallen et al. 2023, section 4.2)."""
    labels, reference = result.labels(), result.reference.label
    rows = []
    for item in (e for e in result.retrieval_errors if e.series != result.reference.key):
        cells = []
        for name in ("both", "only_reference", "only_this", "neither"):
            count, given = item.cells[name]
            share = f"{100 * count / item.questions:.1f}"
            cells.append(f"{share} ({100 * given:.0f})" if given is not None else share)
        rows.append(Row((labels[item.series], *cells), item.series))
    if not rows:
        return None
    return Table(
        f"When retrieval helps and when it hurts, % of questions: {task_words(result)}",
        ("arm", "both right", f"only {reference}", "only this arm", "both wrong"),
        tuple(rows),
        caption="In brackets: of these questions, the share in % with an answer in the passages that were given.",
    )


def sweep_table(result: QaComparison) -> Table | None:
    """The primary metric by number of passages; None without evaluations that differ in it."""
    if not result.sweeps:
        return None
    labels = result.labels()
    ks = sorted({k for by_k in result.sweeps.values() for k in by_k})
    rows = [
        Row((labels[key], *(figure(scaled(by_k[k]), 1) if k in by_k else "-" for k in ks)), key)
        for key, by_k in result.sweeps.items()
    ]
    return Table(
        f"{metric_words(result.primary).capitalize()} by number of passages, %: {task_words(result)}",
        ("arm", *(f"k = {k}" for k in ks)),
        tuple(rows),
        caption="k: most passages of a question (qa.layout.passages). Each row is over the questions that all its "
        "evaluations answered.",
        optional=tuple(range(len(ks) - 1, 1, -1)),
    )


def cost_table(result: QaComparison) -> Table | None:
    """Time and tokens per question; None where nothing was recorded."""
    if not result.costs:
        return None
    labels = result.labels()

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        Row(
            (
                labels[item.series],
                text(item.latency_ms, ",.1f"),
                text(None if item.seconds is None else 1000 * item.seconds, ",.1f"),
                text(item.prompt_tokens, ",.1f"),
                text(item.encoder_tokens, ",.1f"),
                text(item.new_tokens, ",.1f"),
            ),
            item.series,
        )
        for item in result.costs
    ]
    return Table(
        f"Cost per question: {task_words(result)}",
        ("arm", "alone, ms", "in batches, ms", "prompt tokens", "encoder tokens", "new tokens"),
        tuple(rows),
        caption="Alone: median over questions asked one at a time. In batches: time in the model, shared out. Passages "
        "were retrieved before; searching is not in these times.",
        optional=(5, 2, 3),
    )


def adaptive_table(result: QaComparison, item: Adaptive) -> Table:
    """Retrieval only when it helps, beside never, always and the oracle."""
    metric = metric_words(item.metric)
    priced = any("cost" in policy.expenses for policy in item.policies)
    rows = []
    for policy in item.policies:
        group = f"By {policy.kind}, {item.splits:,} random splits"
        shares = {"closed": "0.0", "retrieval": "100.0", "adaptive": figure(scaled(policy.share), 1)}
        shares["oracle"] = figure(scaled(policy.oracle_share), 1)
        names = {
            "closed": f"never ({arm_words(item.closed)})",
            "retrieval": f"always ({arm_words(item.retrieval)})",
            "adaptive": "adaptive",
            "oracle": "oracle: the better of both",
        }
        for name, words in names.items():
            if name not in policy.accuracy:
                continue
            latency = policy.expenses.get("latency_ms") or policy.expenses.get("seconds")
            saved = figure(scaled(latency.saved), 1) if latency and name == "adaptive" else ""
            gain = figure(scaled(policy.gain), 1, signed=True) if name == "adaptive" else ""
            sd = f"{100 * policy.sd:.1f}" if name == "adaptive" else ""
            accuracy = figure(scaled(policy.accuracy[name]), 1)
            cells = [words, accuracy, sd, shares.get(name, ""), gain, saved]
            if priced:
                spent = policy.expenses.get("cost")
                cells.append(figure(scaled(spent.saved), 1) if spent and name == "adaptive" else "")
            rows.append(Row(tuple(cells), group=group))
    return Table(
        f"Adaptive retrieval: {task_words(result)}, eval/{item.evaluation}",
        ("policy", f"{metric}, %", "sd", "retrieved, %", "minus better fixed arm", "time saved, %")
        + (("cost saved, %",) if priced else ()),
        tuple(rows),
        caption=f"{item.questions:,} questions; thresholds fitted on one part and tested on the rest of every split. "
        "sd and [low, high] of accuracy, share and what is saved (against always retrieving): over the splits, the "
        "central 95% of them; they share questions, so this is no confidence interval. [low, high] of the gain over "
        "the better fixed arm: 95% interval, paired bootstrap over questions.",
        optional=(2, 5, 4, *((6,) if priced else ())),
    )
