"""The books: counted from ledgers, checked against everything else that knows; each way to be wrong is named."""

import pytest
from sqlalchemy import update

from mailer_lib.agent.ledger import encode
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import leases, sends
from mailer_lib.dispatch.books import BooksError, balance, read_books
from mailer_lib.dispatch.close import close_send
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import lose_lease
from mailer_lib.dispatch.loss import finish_losses
from mailer_lib.dispatch.sends import find_send
from mailer_lib.dispatch.topup import already_sent
from mailer_lib.dispatch.unknown import unknown_rows
from mailer_lib.identity import message_key
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, Outcome, SendMode, SendState, UnknownPolicy
from tests.dispatch.ledgers import deferral, final, intents, leased, write_ledger
from tests.dispatch.world import PROVIDERS, World


def key_of(world: World, person: int, edition: str = "1") -> bytes:
    identity = world.settings.identity()
    provider = PROVIDERS[person % len(PROVIDERS)]
    return message_key(
        identity.send_key(world.campaign, edition), identity.address_hash(f"p{person}@{provider}.example")
    )


def one_of_each(world: World) -> int:
    """Seven rows, one for each outcome, and a deferral."""
    send_id = world.send()
    world.publish(send_id, [len(Outcome)])
    lease = leased(world, send_id)
    records = [*intents(world, lease, range(3)), deferral(0), *intents(world, lease, [0])]
    write_ledger(world, lease, [*records, *(final(row, outcome) for row, outcome in enumerate(Outcome))])
    return send_id


@pytest.mark.usefixtures("any_store")
def test_every_outcome_is_counted_once(world: World) -> None:
    books = balance(world.engine, world.settings, one_of_each(world))
    assert books.line() == (
        "frozen=7 injected=1 rejected=1 suppressed=1 failed=1 expired=1 cancelled=1 unknown=1 duplicates=0"
    )
    assert (books.balanced, books.deferrals, books.phases) == (True, 1, 1)
    assert books.by_provider["gmail"] == {Outcome.INJECTED: 1, Outcome.EXPIRED: 1}
    assert books.as_dict()["injected"] == 1
    assert list(books.last_injected_at) == ["gmail"]


def test_rows_without_an_outcome_are_unsettled_and_not_balanced(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [4, 2])
    lease = leased(world, send_id, through=3)
    write_ledger(world, lease, [final(0)], settle=False)
    books = balance(world.engine, world.settings, send_id)
    assert (books.unsettled, books.balanced) == (5, False)
    assert "unsettled=5" in books.line()


def test_a_counter_that_differs_from_the_ledger_is_named(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = one_of_each(world)
    with write(world.engine) as connection:
        connection.execute(update(leases).values(injected=2, rejected=0))
    with pytest.raises(BooksError, match=r"0000\.p1\.e1\.ledger counts .*1 rejected.*, the database .*2 injected"):
        balance(world.engine, world.settings, send_id)


@pytest.mark.usefixtures("any_store")
def test_a_ledger_that_is_gone_or_changed_is_named(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = one_of_each(world)
    (ledger,) = store(world.settings).glob("snapshots/*/*/*/ledgers/*.ledger")
    ledger.write_bytes(ledger.read_bytes().replace(b"injected", b"rejected"))
    assert "checksum" in read_books(world.engine, world.settings, send_id)[1][0]
    ledger.unlink()
    assert "can't be read" in read_books(world.engine, world.settings, send_id)[1][0]


def test_a_second_outcome_of_a_row_is_named(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [2])
    lease = write_ledger(world, leased(world, send_id), [final(0), final(1)], settle=False)
    path = KeptLedger(store(world.settings), lease).path
    extra = encode(final(1))
    path.write_bytes(path.read_bytes() + extra)
    with write(world.engine) as connection:
        connection.execute(update(leases).values(ledger_bytes=lease.ledger_bytes + len(extra), injected=3))
    problems = read_books(world.engine, world.settings, send_id)[1]
    assert "0000.p1.e1.ledger: row 1 has two outcomes" in problems


def test_a_changed_manifest_is_named(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = one_of_each(world)
    (manifest,) = store(world.settings).glob("snapshots/*/*/*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"frozen": 7', '"frozen": 8'))
    problems = read_books(world.engine, world.settings, send_id)[1]
    assert "the manifest of phase 1 was changed after it was published" in problems
    assert "the manifest of phase 1 has 8 rows, its shards 7" in problems


def test_the_same_message_in_two_phases_is_a_duplicate(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    for phase in (1, 2):
        world.publish(send_id, [2], phase=phase)
        write_ledger(world, leased(world, send_id), [final(0), final(1)])
    books, problems = read_books(world.engine, world.settings, send_id)
    assert (books.frozen, books.duplicates, books.balanced) == (4, 2, False)
    assert problems == ["2 messages were injected more than once"]


# --- top-up -----------------------------------------------------------------------------------------------------------


def test_a_top_up_leaves_out_who_got_it_was_refused_or_may_have_got_it(world: World) -> None:
    send_id = one_of_each(world)
    outcome = dict(enumerate(Outcome))
    left_out = already_sent(world.engine, world.settings, send_id)
    assert {outcome[row] for row in outcome if key_of(world, row) in left_out} == {
        Outcome.INJECTED,
        Outcome.REJECTED,
        Outcome.UNKNOWN,
    }
    resent = already_sent(world.engine, world.settings, send_id, UnknownPolicy.RESEND)
    assert left_out - resent == {key_of(world, 6)}


def test_rows_in_doubt_are_left_out_whatever_the_policy(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [5])
    write_ledger(world, leased(world, send_id, through=3), [final(0)], settle=False)
    for policy in UnknownPolicy:
        keys = already_sent(world.engine, world.settings, send_id, policy)
        assert keys == {key_of(world, person) for person in range(3)}


def test_unknown_rows_are_listed_until_they_are_resent(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [3])
    lease = write_ledger(world, leased(world, send_id), [final(0)], settle=False)
    lose_lease(world.engine, lease.id)
    finish_losses(world.engine, world.settings, send_id, "server local-1 was lost")
    rows = unknown_rows(world.engine, world.settings, send_id)
    assert [(row.contact_id, row.message_key, row.server, row.why) for row in rows] == [
        (person + 1, key_of(world, person).hex(), "local-1", "server local-1 was lost") for person in (1, 2)
    ]
    world.publish(send_id, [1], phase=2, people_from=1)
    write_ledger(world, leased(world, send_id), [final(0)])
    assert [row.contact_id for row in unknown_rows(world.engine, world.settings, send_id)] == [3]
    assert balance(world.engine, world.settings, send_id).duplicates == 0


# --- close ------------------------------------------------------------------------------------------------------------


def closed(world: World, send_id: int) -> tuple[SendState, str | None]:
    close_send(world.engine, world.settings, send_id)
    with read(world.engine) as connection:
        send = find_send(connection, "spring-sale#1")
    return send.state, send.reason


def test_a_send_whose_rows_all_have_outcomes_is_finished(world: World) -> None:
    send_id = one_of_each(world)
    assert closed(world, send_id) == (SendState.FINISHED, None)
    assert closed(world, send_id) == (SendState.FINISHED, None)


def test_unsent_rows_are_never_called_finished(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [2, 3])
    write_ledger(world, leased(world, send_id), [final(0), final(1)])
    assert closed(world, send_id) == (
        SendState.FAILED,
        "spring-sale#1: 3 rows have no outcome; trigger it again to go on",
    )


@pytest.mark.parametrize(
    ("values", "state", "outcome"),
    [
        ({"control": Control.STOP}, SendState.STOPPED, Outcome.CANCELLED),
        ({"state": SendState.REJECTED}, SendState.REJECTED, Outcome.CANCELLED),
        ({"mode": SendMode.DRY_RUN, "state": SendState.AWAITING_APPROVAL}, SendState.FINISHED, Outcome.CANCELLED),
        ({"expires_at": True}, SendState.EXPIRED, Outcome.EXPIRED),
    ],
)
def test_what_nobody_may_send_any_more_is_written_off_in_central_ledgers(
    world: World, values: dict[str, object], state: SendState, outcome: Outcome
) -> None:
    send_id = world.send()
    path = world.publish(send_id, [2, 3])
    write_ledger(world, leased(world, send_id), [final(0), final(1)])
    if "expires_at" in values:
        values = {"expires_at": now()}
    with write(world.engine) as connection:
        connection.execute(update(sends).values(**values))
    assert closed(world, send_id)[0] == state
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[outcome], books.balanced) == (2, 3, True)
    assert (world.settings.storage / path / "ledgers/0001.p1.e1.ledger").exists()
    assert closed(world, send_id)[0] == state


def test_a_send_that_nobody_approved_says_so(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send(state=SendState.AWAITING_APPROVAL)
    world.publish(send_id, [2])
    assert closed(world, send_id) == (SendState.FAILED, "spring-sale#1: nobody approved it; 2 rows are unsent")


def test_unbalanced_books_fail_the_send_with_what_does_not_agree(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = one_of_each(world)
    with write(world.engine) as connection:
        connection.execute(update(leases).values(injected=5))
    with pytest.raises(BooksError):
        close_send(world.engine, world.settings, send_id)
    with read(world.engine) as connection:
        send = find_send(connection, "spring-sale#1")
    assert send.state == SendState.FAILED
    assert send.reason is not None and "don't balance" in send.reason
