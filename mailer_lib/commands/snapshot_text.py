"""What the questions about snapshots answer, as lines, tables and trees for a person."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mailer_lib.shard.recipient import REST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from mailer_lib.audience.difference import Difference, Moved
    from mailer_lib.audience.evaluation import Judged
    from mailer_lib.audience.profile import Column, Profile
    from mailer_lib.dispatch.why import InPhase, Rules, Why


def why_lines(found: "Why") -> "Iterator[RenderableType]":
    """The answer first, then the phases, then the rules."""
    from mailer_lib.dispatch.why import headline

    yield Text(headline(found))
    for phase in found.phases:
        yield from _phase_lines(phase)
    if found.rules is not None:
        yield from _rules_lines(found.rules)


def difference_lines(found: "Difference") -> "Iterator[RenderableType]":
    """Counts, then one block for those who came and one for those who went."""
    yield Text(f"{found.first} → {found.second}")
    yield Text(f"in the first   {found.first_people:>10,}")
    yield Text(f"in the second  {found.second_people:>10,}")
    yield Text(f"in both        {found.stayed:>10,}")
    yield from _moved_lines("added", found.added, _WHY_ADDED)
    yield from _moved_lines("removed", found.removed, _WHY_REMOVED)


_WHY_ADDED = {
    "barred": "matched the first too, and are no longer barred",
    "erased": "were erased since; nothing is known of them",
    "no-contact-yet": "became contacts after the first was frozen",
    "gone": "are no contacts any more",
    "no-match": "match now; didn't match the first",
}
_WHY_REMOVED = {
    "barred": "match the second, and are barred:",
    "erased": "were erased since; nothing is known of them",
    "no-contact-yet": "were no contacts yet when the second was frozen",
    "gone": "are no contacts any more",
    "no-match": "don't match the second",
}


def _moved_lines(label: str, moved: "Moved", why: dict[str, str]) -> "Iterator[RenderableType]":
    yield Text(f"{label:<13}  {moved.people:>10,}")
    for absence, people in moved.by_absence.items():
        yield Text(f"               {people:>10,}  {why[absence]}")
        if absence == "barred":
            yield from (Text(f"                 {n:>10,}  {reason}") for reason, n in moved.by_reason.items())
    if moved.by_provider:
        yield Text("               " + ", ".join(f"{name} {people:,}" for name, people in moved.by_provider.items()))


_SHOWN_VALUES = 10
_SHOWN_MONTHS = 12


def profile_lines(found: "Profile") -> "Iterator[RenderableType]":
    """A table with a line for each column. Shares are of all people; those without a value make up the rest."""
    blanked = f", {found.blanked:,} more are blanked" if found.blanked else ""
    yield Text(f"{found.name} phase {found.phase}: {found.people:,} people{blanked}")
    table = Table("column", "missing", "different", "values")
    for column in found.columns:
        about = "about " if column.spread is not None and not column.values else ""
        missing = _share(column.missing, found.people)
        table.add_row(column.name, missing, f"{about}{column.different:,}", _values(column, found.people))
    yield table


def _values(column: "Column", people: int) -> Text:
    if column.spread is not None:
        spread = column.spread
        at = [f"{percent} % {value:.15g}" for percent, value in spread.percentiles.items()]
        return Text(", ".join([f"min {spread.smallest:.15g}", *at, f"max {spread.largest:.15g}"]))
    values = column.values
    if column.kind == "date":
        left = len(values) - _SHOWN_MONTHS
        head = f"{values[0][0]} to {values[-1][0]}; the last: " if left > 0 else ""
        return Text(head + ", ".join(f"{month} {_share(n, people)}" for month, n in values[-_SHOWN_MONTHS:]))
    shown = values if column.name == "domain" else values[:_SHOWN_VALUES]
    return Text(", ".join(f"{value} {_share(n, people)}" for value, n in shown))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _phase_lines(phase: "InPhase") -> "Iterator[RenderableType]":
    head = f"phase {phase.phase}, as of {phase.as_of:%Y-%m-%d %H:%M} UTC: "
    if phase.frozen is not None:
        row = phase.frozen
        blanked = ", blanked" if row.blanked else ""
        variant = "not decided on yet" if row.variant == REST else row.variant
        yield Text(f"{head}selected, shard {phase.shard}, row {row.row}, variant {variant}, {row.provider}{blanked}")
        yield Text(f"  message key {row.message_key.hex()}")
        yield Text(f"  {_outcome(phase)}")
    elif phase.left_out:
        yield Text(f"{head}matched, left out")
        for reason in phase.left_out:
            yield Text(f"  {reason.name}: {reason.sentence}")
    else:
        yield Text(f"{head}not among those who matched")


def _outcome(phase: "InPhase") -> str:
    said = phase.outcome
    assert said is not None
    server = f" by {said.server}" if said.server else ""
    deferred = f", deferred {said.deferrals} times before" if said.deferrals else ""
    if said.outcome is None:
        return f"granted to {said.server}, not settled yet{deferred}" if said.server else "nobody sends it yet"
    reply = f": {said.reply}" if said.reply else ""
    return f"{said.outcome}{server} on {said.at:%Y-%m-%d %H:%M:%S} UTC{deferred}{reply}"


def _rules_lines(rules: "Rules") -> "Iterator[RenderableType]":
    name = f' "{rules.criteria}"' if rules.criteria else ""
    if rules.answer is None:
        yield Text(f"criteria{name}: {rules.problem}")
        return
    as_it_is = "as the contact is now" if rules.changed else "the contact hasn't changed since"
    yield Text(
        f'criteria{name} of phase {rules.phase}, "today" is {rules.as_of:%Y-%m-%d %H:%M} UTC; {as_it_is}'
        + "".join(f"\n  {sentence}" for sentence in rules.changed)
    )
    yield judged_tree(rules.answer)


def judged_tree(judged: "Judged") -> Tree:
    """✓ what held, ✗ what didn't."""
    tree = Tree(_judged_line(judged))
    _grow(tree, judged)
    return tree


def _grow(tree: Tree, judged: "Judged") -> None:
    for member in judged.members:
        _grow(tree.add(_judged_line(member)), member)


def _judged_line(judged: "Judged") -> Text:
    value = f"  ({judged.value})" if judged.value is not None else ""
    mark = ("✓", "green") if judged.holds else ("✗", "red")
    return Text.assemble(mark, f" {judged.label}", (value, "dim"))
