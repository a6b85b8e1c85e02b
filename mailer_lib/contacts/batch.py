"""One batch of an import: how one transaction stores what its rows say, for all lists that they join.

Most rows are plain and go the quick way (``plain_batch``); everybody else is weighed one by one (``exact_batch``).
"""

from collections.abc import Callable, Collection, Sequence

from sqlalchemy import Connection

from mailer_lib.contacts import exact_batch, plain_batch
from mailer_lib.contacts.address import Address
from mailer_lib.contacts.drafts import BatchCounts, Before, Drafts, ListCounts, Portion
from mailer_lib.contacts.hash_lists import HashList, all_hash_lists, hold_off, listed
from mailer_lib.contacts.plain_rows import PlainRows
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.terms import SubscriptionState


def store(
    connection: Connection,
    scopes: Sequence[ImportScope],
    portion: Portion,
    before: Before,
    *,
    dry: bool = False,
) -> BatchCounts:
    """Store a portion in the open write transaction, for all its lists, or with ``dry`` only say what would be stored.

    Everything is weighed before anything is written, so the order of the lists decides nothing.
    """
    plain, drafts = portion.plain, Drafts(portion.drafts)
    if not dry:
        hold_off(connection, [scope.list_id for scope in scopes])
    on_lists = _on_hash_lists(connection, portion)
    counts = BatchCounts([ListCounts() for _ in scopes])
    found: list[tuple[PlainRows, plain_batch.Sorted]] = []
    if plain.keys:
        for number, scope in enumerate(scopes):
            rows = plain.of_list(number)
            found.append(
                (rows, plain_batch.sort_out(connection, scope, rows, on_lists) if rows.keys else plain_batch.Sorted())
            )
        exact = {rows.keys[i]: rows.places[i] for rows, sorted_ in found for i in sorted_.exact}
        for key, place in exact.items():
            drafts.add(key, portion.reread(place))
        if exact and len(scopes) > 1:  # who is weighed for one list is weighed for all
            found = [(rows, s.without({i for i, key in enumerate(rows.keys) if key in exact})) for rows, s in found]
        _count_plain(counts, scopes, found, before)
    weighed = exact_batch.weigh_all(connection, scopes, drafts, before, counts, on_lists=on_lists) if drafts else None
    if not dry:
        ids = plain_batch.write_contacts(connection, plain, _new_of(plain, found)) if found else {}
        for scope, (rows, sorted_) in zip(scopes, found, strict=False):
            plain_batch.write_consents(connection, scope, rows, sorted_, ids)
        if weighed is not None:
            weighed.write(connection)
    return counts


def _on_hash_lists(connection: Connection, portion: Portion) -> dict[bytes, tuple[HashList, ...]]:
    """Whom the suppression lists of others name."""
    lists = all_hash_lists(connection)
    if not lists:
        return {}
    plain = portion.plain
    people = {
        key: Address(given, normalised, "", domain)
        for key, given, normalised, domain in zip(plain.keys, plain.given, plain.normalised, plain.domains, strict=True)
    } | {key: draft.address for key, draft in portion.drafts.items()}
    return listed(connection, lists, people)


def _new_of(plain: PlainRows, found: Sequence[tuple[PlainRows, plain_batch.Sorted]]) -> Sequence[int]:
    """The rows of new contacts, whichever list found them."""
    if len(found) == 1:
        return found[0][1].new
    new = {rows.keys[i] for rows, sorted_ in found for i in sorted_.new}
    return [i for i, key in enumerate(plain.keys) if key in new]


def _count_plain(
    counts: BatchCounts,
    scopes: Sequence[ImportScope],
    found: Sequence[tuple[PlainRows, plain_batch.Sorted]],
    before: Before,
) -> None:
    def fresh(rows: PlainRows, indexes: Sequence[int], already: Collection[bytes]) -> list[int]:
        return [i for i in indexes if rows.keys[i] not in already] if already else list(indexes)

    for scope, (rows, sorted_), count, already in zip(scopes, found, counts.lists, before.of_list, strict=True):
        joining, unchanged = fresh(rows, sorted_.joining, already), fresh(rows, sorted_.unchanged, already)
        if plain_batch.newcomer(scope).state is SubscriptionState.CONFIRMED:
            count.confirmed += len(joining) + len(unchanged)
        else:
            pending = sum(sorted_.states[i] is SubscriptionState.PENDING for i in unchanged)
            count.pending += len(joining) + pending
            count.confirmed += len(unchanged) - pending
        count.undated += sum(rows.at[i] is None for i in (*joining, *unchanged))
    if len(found) == 1:
        rows, sorted_ = found[0]
        new, joined = (len(fresh(rows, i, before.people)) for i in (sorted_.new, sorted_.joining))
        counts.new += new
        counts.updated += joined - new
        counts.unchanged += len(fresh(rows, sorted_.unchanged, before.people))
        return

    def people(of: Callable[[plain_batch.Sorted], Sequence[int]]) -> set[bytes]:
        return {rows.keys[i] for rows, sorted_ in found for i in of(sorted_)}.difference(before.people)

    news, joins, stays = people(lambda s: s.new), people(lambda s: s.joining), people(lambda s: s.unchanged)
    counts.new += len(news)
    counts.updated += len(joins) - len(news)
    counts.unchanged += len(stays - joins)
