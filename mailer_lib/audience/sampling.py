"""Where a random sample ends: one threshold for the whole, found once and bound in every range and retry.

Contacts are ordered by ``sample_point`` (SHA-256 of seed and address hash); a sample is everybody up to the threshold.
For a percentage it is that part of all possible points; for a number it is the point of the last one who is taken.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from mailer_lib.audience.behaviour_sets import StoredPeople, staged
from mailer_lib.audience.catalogue import Catalogue
from mailer_lib.audience.criteria import where
from mailer_lib.audience.exclusions import Held
from mailer_lib.audience.expressions import sample_point
from mailer_lib.audience.plan import Exclude
from mailer_lib.audience.rules import Group, Sample, behaviours, parse
from mailer_lib.database.schema import contacts
from mailer_lib.settings import Settings

_POINTS = 1 << 256


def thresholds(connection: Connection, group: Group, last_id: int | None = None) -> dict[str, str]:
    """64 hex digits by ``Sample.criteria``; a number of people costs one pass over the contacts that match.

    Args:
        last_id: newest contact that counts.
    """
    found: dict[str, str] = {}
    for sampled in _inside_out(group):
        sample = sampled.sample
        assert sample is not None
        if sample.criteria not in found:
            found[sample.criteria] = _threshold(connection, sampled, sample, found, last_id)
    return found


@contextmanager
def picking(
    connection: Connection,
    settings: Settings,
    tree: Any,
    catalogue: Catalogue,
    *,
    now: datetime,
    last_id: int | None = None,
) -> Iterator[ColumnElement[bool]]:
    """A tree as the condition that it sets on a row of ``contacts``, its samples included.

    It can be asked on this connection while the block runs: behaviour is staged for it, as the store has it now.

    Raises:
        CriteriaError: what is wrong with the tree, with JSON paths.
    """
    group = parse(tree, catalogue, now=now)
    with staged(connection, behaviours(group), StoredPeople(settings)):
        yield where(group, thresholds(connection, group, last_id))


def held(exclude: Exclude, known: Catalogue, thresholds: Mapping[str, str], *, now: datetime) -> Held:
    """What a campaign leaves out, as conditions on ``contacts``.

    Raises:
        CriteriaError: criteria to be left out can't be used.
        KeyError: there is no such list any more.
    """
    control = exclude.control_group
    return Held(
        lists=[known.lists[name] for name in exclude.lists],
        matching=where(excluded_group(exclude, known, now=now), thresholds) if exclude.criteria else None,
        control=None
        if control is None
        else sample_point(f"control:{control.seed}", contacts.c.address_hash)
        <= percentile(Fraction(str(control.percent))),
    )


def excluded_group(exclude: Exclude, known: Catalogue, *, now: datetime | None = None) -> Group:
    """Whoever matches any of the criteria to be left out, which have to be some."""
    rules = [{"field": "criteria", "operator": "=", "value": name} for name in exclude.criteria]
    return parse({"combinator": "or", "rules": rules}, known, now=now)


def percentile(percent: Fraction) -> str:
    """The last point of the first ``percent`` of them."""
    return f"{max(0, _POINTS * percent // 100 - 1):064x}"


def _threshold(connection: Connection, group: Group, sample: Sample, inner: dict[str, str], last_id: int | None) -> str:
    if sample.percent is not None:
        return percentile(sample.percent)
    assert sample.count is not None
    point = sample_point(sample.seed, contacts.c.address_hash).label("point")
    statement = select(point).where(where(replace(group, sample=None), inner))
    if last_id is not None:
        statement = statement.where(contacts.c.id <= last_id)
    last = connection.execute(statement.order_by("point").limit(1).offset(sample.count - 1)).scalar_one_or_none()
    return percentile(Fraction(100)) if last is None else str(last)


def _inside_out(group: Group) -> Iterator[Group]:
    for member in group.members:
        if isinstance(member, Group):
            yield from _inside_out(member)
    if group.sample is not None:
        yield group
