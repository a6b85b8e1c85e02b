"""The quick way of a batch into the database, for those about whom there is nothing to weigh.

That is: somebody of whom nothing is known, or a contact who stays what they are; not subscribed to the list yet, or in
the state that the import brings; neither suppressed, nor unsubscribed, nor at a barred domain. ``sort_out`` finds them,
all others go the exact way (``batch.store``). What a consent is worth is ``precedence.weigh``'s decision here too:
without a refusal or a barrier it doesn't depend on the time of the consent, so one answer serves all.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from mailer_lib.contacts.plain_rows import PlainRows
from mailer_lib.contacts.precedence import NEWCOMER, Standing, Verdict, weigh
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.database import bulk, bulk_load
from mailer_lib.database.bulk_lookup import IN_CHUNK, People
from mailer_lib.database.engine import now
from mailer_lib.database.schema import domain_suppressions
from mailer_lib.terms import ContactState, SubscriptionState


@dataclass(slots=True)
class Sorted:
    """What is to be done about the plain rows. Indexes into them, but for ``counted``."""

    exact: list[int] = field(default_factory=list)  # to be weighed one by one
    new: list[int] = field(default_factory=list)
    joining: list[int] = field(default_factory=list)  # not subscribed to the list yet, the new ones included
    recording: list[int] = field(default_factory=list)  # whose evidence isn't recorded yet
    unchanged: list[int] = field(default_factory=list)
    states: dict[int, SubscriptionState] = field(default_factory=dict)  # of those unchanged

    def without(self, dropped: Collection[int]) -> "Sorted":
        """All but some rows, who go the exact way because another list asks for it."""
        new, joining, recording, unchanged = (
            [i for i in indexes if i not in dropped]
            for indexes in (self.new, self.joining, self.recording, self.unchanged)
        )
        return Sorted([], new, joining, recording, unchanged, self.states)


def newcomer(scope: ImportScope) -> Verdict:
    """What the import makes of somebody of whom nothing is known."""
    return weigh(scope.requested, None, NEWCOMER)


def sort_out(connection: Connection, scope: ImportScope, rows: PlainRows, listed: Collection[bytes] = ()) -> Sorted:
    """Look up what is known of the people, and say who goes which way. ``listed``: whom hash lists name."""
    keys = rows.keys
    people = People(connection, keys)
    known = {row[0]: row for row in people.contacts(scope.list_id)}
    barred = people.barred(scope.list_id) | set(listed)
    evidence: dict[bytes, set[tuple[str | None, str | None]]] = {}
    for key, at, source in people.evidence(scope.list_id, scope.method):
        evidence.setdefault(key, set()).update(((at, source), (None, source)))
    domains = _barred_domains(connection, rows.domains)
    found = Sorted()
    everybody = list(range(len(keys)))
    if not known and not barred and not evidence and not domains:
        found.new = found.joining = found.recording = everybody
        return found
    keeps = {
        state.value: state
        for state in (SubscriptionState.CONFIRMED, SubscriptionState.PENDING)
        if weigh(scope.requested, None, Standing(state)).state is state
    }
    for i, key in enumerate(keys):
        contact = known.get(key)
        if key in barred or rows.domains[i] in domains or (contact is not None and not _same(rows, i, contact)):
            found.exact.append(i)
            continue
        at, source = rows.at[i], rows.sources[i]
        joins = contact is None or contact[8] is None
        if contact is not None and contact[8] is not None:
            moved_on = contact[8] == SubscriptionState.CONFIRMED and not scope.requested and at is not None
            if contact[8] not in keeps or (moved_on and (contact[9] is None or contact[9] < at)):
                found.exact.append(i)
                continue
        recorded = evidence.get(key, ())
        if (at, source) not in recorded:
            found.recording.append(i)
        if contact is None:
            found.new.append(i)
        if joins:
            found.joining.append(i)
        elif contact is not None:
            found.unchanged.append(i)
            found.states[i] = keeps[contact[8]]
    return found


def _same(rows: PlainRows, i: int, contact: tuple[object, ...]) -> bool:
    """Whether the row leaves the contact as it is; what the row doesn't say stays."""
    _, _, given, given_name, family_name, locale, timezone, attributes, *_ = contact
    if given != rows.given[i]:
        return False
    for said, stands in (
        (rows.given_names[i], given_name), (rows.family_names[i], family_name), (rows.locales[i], locale),
        (rows.timezones[i], timezone),
    ):  # fmt: skip
        if said is not None and said != stands:
            return False
    if attributes == rows.attributes[i]:
        return True
    before = json.loads(str(attributes))
    return bool(before | json.loads(rows.attributes[i]) == before)


def write_contacts(connection: Connection, rows: PlainRows, found: Sequence[int]) -> dict[bytes, int]:
    """Add the contacts that ``sort_out`` found to be new, in its transaction. Returns the ids that are known without
    reading them back, by address hash.
    """
    moment = bulk.moment_text(now())
    ids: dict[bytes, int] = {}
    if found:
        new = _at(rows, found)
        given = bulk_load.add_contacts(
            connection,
            {
                "address_given": new.given, "address": new.normalised, "address_hash": new.keys, "domain": new.domains,
                "provider": new.providers, "given_name": new.given_names, "family_name": new.family_names,
                "locale": new.locales, "timezone": new.timezones, "attributes": new.attributes,
                "state": ContactState.ACTIVE.value, "created_at": moment, "updated_at": moment,
            },
        )  # fmt: skip
        if given is not None:
            ids.update(zip(new.keys, given, strict=True))
    return ids


def write_consents(
    connection: Connection, scope: ImportScope, rows: PlainRows, found: Sorted, new: Mapping[bytes, int]
) -> None:
    """Store the subscriptions and the evidence of one list, whose contacts are there. ``new``: ids that are known."""
    moment = bulk.moment_text(now())
    verdict = newcomer(scope)
    assert verdict.action is not None
    ids = dict(new)
    if found.joining:
        joining = _at(rows, found.joining)
        others = [key for key in joining.keys if key not in ids]
        if others:
            ids |= People(connection, others).ids()
        dated = verdict.state is SubscriptionState.CONFIRMED and not scope.requested
        bulk_load.add_subscriptions(
            connection,
            {
                "contact_id": [ids[key] for key in joining.keys], "list_id": scope.list_id,
                "state": verdict.state.value, "source": joining.sources, "confirmed_at": joining.at if dated else None,
                "unsubscribed_at": None, "updated_at": moment,
            },
        )  # fmt: skip
    if found.recording:
        recording = _at(rows, found.recording)
        started = bulk.moment_text(scope.started)
        bulk_load.add_consent_events(
            connection,
            {
                "address_hash": recording.keys, "list_id": scope.list_id, "action": verdict.action.value,
                "occurred_at": [at or started for at in recording.at], "recorded_at": moment, "method": scope.method,
                "source": recording.sources, "wording": recording.wordings, "ip": recording.ips,
            },
        )  # fmt: skip


def _at(rows: PlainRows, indexes: Sequence[int]) -> PlainRows:
    if len(indexes) == len(rows.keys):
        return rows
    wanted = bytearray(len(rows.keys))
    for index in indexes:
        wanted[index] = 1
    return rows.only(wanted)


def _barred_domains(connection: Connection, domains: Sequence[str]) -> set[str]:
    barred: set[str] = set()
    names = sorted(set(domains))
    for start in range(0, len(names), IN_CHUNK):
        chunk = names[start : start + IN_CHUNK]
        barred.update(
            connection.scalars(select(domain_suppressions.c.domain).where(domain_suppressions.c.domain.in_(chunk)))
        )
    return barred
