"""Finds an ORM that cannot judge the data: one for which the references themselves are wrong."""

from collections.abc import Iterable, Iterator, Sequence

from swiftplug.errors import UserError
from swiftplug.plugin.registry import BUILT_IN, PluginChoice, Registry
from swiftplug.sampling.rows import REFERENCE_COLUMNS, Row
from swiftplug.sampling.scoring import Scorer

_ROWS = 16
"""Number of rows whose references are tried, spread over the dataset."""

_MAX_FINAL_ANSWER = 100
"""Number of characters up to which a reference of one line may be a final answer without a solution."""

_STATED = (r"\boxed{%s}", "<answer>%s</answer>", "#### %s", "The answer is %s.")
"""The usual ways to state a final answer."""


def tried_positions(total: int) -> range:
    """The positions of the rows that `check_judges` needs of so many rows, spread over all of them."""
    return range(0, total, -(-total // _ROWS))


def check_judges(rows: Sequence[Row], scorers: Sequence[Scorer], registry: Registry, timeout: float) -> None:
    """Refuse a built-in ORM for which the references of some rows are wrong.

    Raises:
        UserError: One cannot judge the data.
    """
    for scorer in scorers:
        if scorer.plugin.found.distribution == BUILT_IN:
            check_judge(scorer, rows, registry, timeout)


def check_judge(scorer: Scorer, rows: Iterable[Row], registry: Registry, timeout: float) -> None:
    """Refuse an ORM that compares answers with references, and for which none of the references is a right answer.

    The reference of a third party's ORM may be anything, such as tests or a keyword. For that, only references that the
    dataset has as answers are tried, and what goes wrong at that proves nothing.

    Raises:
        UserError: None is right. The message names the built-in ORMs for which all are.
    """
    is_built_in = scorer.plugin.found.distribution == BUILT_IN
    tried = [row for row in rows if row.reference is not None and (is_built_in or _is_answer(row))][:_ROWS]
    if not tried or scorer.bound.right_from is None or not scorer.bound.compares:
        return
    try:
        if any(_right_references(scorer, tried, timeout)):
            return
    except UserError:
        if is_built_in:
            raise
        return
    fitting = [f"--orm {name}" for name in _fitting_orms(tried, registry, timeout)]
    raise UserError(
        f"{scorer.plugin.found} finds no reference right as an answer ({len(tried)} tried), so it cannot judge this "
        f"data: the reference of {tried[0].origin} ends in {str(tried[0].ground_truth)[-40:]!r}; "
        + (f"use {' or '.join(fitting)}" if fitting else "choose another ORM, or leave it out")
    )


def _is_answer(row: Row) -> bool:
    """Whether the reference is the answer that the dataset has as the last message."""
    return row.reference not in [row.columns.get(name) for name in REFERENCE_COLUMNS]


def _right_references(scorer: Scorer, rows: Sequence[Row], timeout: float) -> list[bool]:
    """Whether each reference is right as it is or, if none is, with its final answer stated in a usual way."""
    right = scorer.find_right([(row, str(row.ground_truth)) for row in rows], timeout)
    if any(right):
        return right
    stated = [(row, text) for row in rows for text in _stated_answers(str(row.ground_truth))]
    return scorer.find_right(stated, timeout)


def _stated_answers(reference: str) -> Iterator[str]:
    """The final answer of a reference, all of it if that is short, or else its last word, stated in the usual ways."""
    is_short = len(reference) <= _MAX_FINAL_ANSWER and "\n" not in reference and "####" not in reference
    for answer in {*([reference] if is_short else []), *reference.split()[-1:]}:
        yield from (form % answer for form in _STATED)


def _fitting_orms(rows: Sequence[Row], registry: Registry, timeout: float) -> Iterator[str]:
    """The built-in ORMs that find all references right, each by the final answer in it."""
    for found in registry.found("orm"):
        if found.distribution != BUILT_IN:
            continue
        try:
            plugin = registry.resolve("orm", PluginChoice(name=found.qualified_name), "--orm")
        except UserError:  # it needs options, or an extra
            continue
        scorer = Scorer(found.name, "orm", 1.0, plugin)
        texts = [(row, str(row.ground_truth)) for row in rows]
        finds_answers = scorer.bound.compares and all(scorer.bound.answer_of(it) not in (None, it) for _, it in texts)
        if finds_answers and all(scorer.find_right(texts, timeout)):
            yield found.name
