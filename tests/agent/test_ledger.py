import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.ledger import (
    AMENDABLE,
    Amended,
    Closed,
    Connected,
    Deferral,
    Final,
    Header,
    Intent,
    LedgerError,
    LedgerState,
    LedgerWriter,
    Opened,
    Record,
    decode,
    encode,
    last_incarnation,
    read_ledger,
)
from mailer_lib.terms import Outcome

HEADER = Header("spring-sale#1@local-1.0", 3, 1, 2, 0)
OPENED = Opened(1, "boot-a", 4711, 1_790_000_000_000)

words = st.text(max_size=60)
rows = st.integers(0, 4999)
times = st.integers(0, 2**42)
conns = st.builds("{}.{}".format, st.integers(1, 99), st.integers(1, 9999))
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Header, words, rows, rows, rows, rows),
    st.builds(Opened, st.integers(1, 99), words, st.integers(1, 2**22), times),
    st.builds(Closed, st.integers(1, 99), times),
    st.builds(Connected, conns, st.integers(1, 65535), times, st.integers(0, 2**63), st.integers(0, 2**62)),
    st.builds(Intent, rows, st.binary(min_size=16, max_size=16), st.integers(1, 99), conns, times),
    st.builds(Deferral, rows, st.integers(0, 499), words, words, times, times, words),
    *(
        st.builds(
            kind, rows, st.sampled_from(Outcome), st.integers(0, 599), words, words, conns, st.integers(0, 9), words,
            times, words,
        )
        for kind in (Final, Amended)
    ),
)  # fmt: skip


@given(records)
def test_every_record_is_one_line_that_reads_back(record: Record) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    again = decode(line[:-1])
    assert type(again) is type(record)
    assert encode(again) == line
    for wrote, read in zip(record, again, strict=True):
        if not isinstance(wrote, str):
            assert read == wrote


@given(records, st.data())
def test_a_damaged_line_is_noticed(record: Record, data: st.DataObject) -> None:
    line = bytearray(encode(record)[:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= 1 << data.draw(st.integers(0, 6))
    if b"\n" in line:
        return  # two lines, both wrong
    with contextlib.suppress(ValueError):
        assert decode(bytes(line)) == decode(encode(record)[:-1])  # a CRC digit in upper case is the same CRC


@st.composite
def stories(draw: st.DrawFn) -> list[Record]:
    """What an agent can write: rows are tried on connections, deferred, settled; agents come and go."""
    story: list[Record] = [HEADER]
    incarnation = 0
    settled: set[int] = set()
    for _ in range(draw(st.integers(1, 5))):
        incarnation += 1
        story.append(Opened(incarnation, draw(st.sampled_from(["boot-a", "boot-b"])), 10 + incarnation, incarnation))
        conn = f"{incarnation}.1"
        story.append(Connected(conn, 40_000 + incarnation, 5, 77, 1000 * incarnation))
        for row in draw(st.lists(st.integers(0, 9), max_size=12)):
            if row in settled:
                continue
            if draw(st.booleans()):
                story.append(Intent(row, bytes([row]) * 16, 1, conn, 6))
            what = draw(st.sampled_from(["doubt", "defer", "final"]))
            if what == "defer":
                story.append(Deferral(row, 451, "4.7.1", "gmail", 99, 7, "later"))
            elif what == "final":
                outcome = draw(st.sampled_from(Outcome))
                story.append(Final(row, outcome, 250, "2.0.0", "id", conn, 0, "gmail", 8, "OK"))
                settled.add(row)
        if draw(st.booleans()):
            story.append(Closed(incarnation, 9))
    return story


@given(stories(), st.data())
def test_any_prefix_of_a_ledger_folds_to_a_consistent_state(story: list[Record], data: st.DataObject) -> None:
    whole = b"".join(map(encode, story))
    cut = data.draw(st.integers(0, len(whole)))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"prefix-{os.getpid()}.ledger"
    path.write_bytes(whole[:cut])
    try:
        delta = read_ledger(path)
    finally:
        path.unlink()
    assert delta.records == story[: len(delta.records)]
    assert delta.next_offset + delta.torn == cut
    state = LedgerState.of(delta.records)
    expected: dict[int, object] = {}
    for record in delta.records:
        if isinstance(record, Intent | Deferral | Final):
            expected[record.row] = record
    for row, last in expected.items():
        assert (row in state.outcomes) == isinstance(last, Final)
        assert (row in {d.row for d in state.in_doubt}) == isinstance(last, Intent)
        if isinstance(last, Deferral):
            assert state.deferred[row].next_at_ms == 99
    assert len(state.in_doubt) == sum(isinstance(last, Intent) for last in expected.values())


@given(stories(), st.data())
def test_a_second_outcome_is_never_folded_in(story: list[Record], data: st.DataObject) -> None:
    state = LedgerState.of(story)
    if not state.outcomes:
        return
    row = data.draw(st.sampled_from(sorted(state.outcomes)))
    again = data.draw(
        st.sampled_from(
            [
                Final(row, Outcome.UNKNOWN, 0, "", "", "", 0, "", 1, ""),
                Intent(row, b"k" * 16, 1, "1.1", 1),
                Deferral(row, 451, "", "", 1, 1, ""),
            ]
        )
    )
    before = dict(state.outcomes)
    with pytest.raises(LedgerError, match=f"row {row}"):
        state.apply(again)
    assert state.outcomes == before


def test_a_row_in_doubt_knows_where_to_look() -> None:
    state = LedgerState.of([HEADER, OPENED, Connected("1.4", 40312, 1, 999, 512), Intent(7, b"k" * 16, 2, "1.4", 5)])
    (doubt,) = state.in_doubt
    assert doubt == (7, b"k" * 16, 2, "1.4", 40312, 999, 512, "boot-a", 1)


def writer(path: Path, incarnation: int = 1) -> LedgerWriter:
    return LedgerWriter.open(path, HEADER, OPENED._replace(incarnation=incarnation))


def test_a_reader_follows_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledgers" / "0003.p1.e2.ledger"
    ledger = writer(path)
    first = read_ledger(path)
    assert first.records == [HEADER, OPENED]
    ledger.add(Intent(0, b"k" * 16, 1, "1.1", 5))
    assert read_ledger(path, first.next_offset).records == []  # gathered, not written
    ledger.flush()
    second = read_ledger(path, first.next_offset)
    assert second.records == [Intent(0, b"k" * 16, 1, "1.1", 5)]
    assert read_ledger(path, second.next_offset) == ([], second.next_offset, 0)
    ledger.close()


def test_a_long_ledger_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    ledger = writer(path)
    for row in range(5000):
        ledger.add(Intent(row, b"k" * 16, 1, "1.1", 5))
    ledger.close()
    seen: list[Record] = []
    offset = 0
    while (delta := read_ledger(path, offset, limit=1000)).records:
        seen += delta.records
        offset = delta.next_offset
    assert seen == read_ledger(path).records
    assert len(LedgerState.load(path).in_doubt) == 5000


def test_the_next_writer_cuts_a_torn_line_off(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    writer(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + encode(Intent(0, b"k" * 16, 1, "1.1", 5))[:-1])
    assert read_ledger(path).records[:-1] == [HEADER, OPENED]
    ledger = writer(path, incarnation=2)
    assert ledger.state.in_doubt == []
    ledger.close()
    kinds = [type(record) for record in read_ledger(path).records]
    assert kinds == [Header, Opened, Closed, Opened, Closed]


def test_even_a_torn_header_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    path.write_bytes(encode(HEADER)[:10])
    writer(path).close()
    assert read_ledger(path).records[:-1] == [HEADER, OPENED]


def test_damage_in_the_middle_names_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    writer(path).close()
    data = bytearray(path.read_bytes())
    second_line = data.index(b"\n") + 1
    data[second_line + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LedgerError, match=rf"l\.ledger, byte {second_line}: damaged"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="damaged"):
        writer(path, 2)


def test_a_ledger_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    writer(path).close()
    with pytest.raises(LedgerError, match="has been cut"):
        read_ledger(path, 10_000)


def test_another_leases_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    writer(path).close()
    with pytest.raises(LedgerError, match="is the ledger of"):
        LedgerWriter.open(path, HEADER._replace(epoch=9), OPENED)


def test_a_full_disk_leaves_whole_lines_behind(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: write(2) writes what fits, then fails."""
    import resource
    import signal

    path = tmp_path / "l.ledger"
    ledger = writer(path)
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
    try:
        ledger.add(Intent(0, b"k" * 16, 1, "1.1", 5))
        with pytest.raises(LedgerError, match="can't be written"):
            ledger.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size
    assert read_ledger(path).torn == 0
    ledger.close()


def test_incarnations_are_counted_over_all_ledgers(tmp_path: Path) -> None:
    assert last_incarnation(tmp_path) == 0
    writer(tmp_path / "0001.p1.e1.ledger", 4).close()
    ledger = writer(tmp_path / "0002.p1.e1.ledger", 5)
    ledger.add(Deferral(1, 451, "", "", 1, 1, "S"))
    ledger.close()
    assert last_incarnation(tmp_path) == 5


# --- a machine that went down -----------------------------------------------------------------------------------------

LATER = Opened(2, "boot-b", 4712, 1_790_000_100_000)
PERHAPS = Intent(4, b"k" * 16, 1, "1.0", 5)


def reopened(path: Path, opened: Opened, *, closed: bool) -> list[Record]:
    """What the second agent adds to the ledger of the first."""
    first = LedgerWriter.open(path, HEADER, OPENED)
    first.add(Intent(3, b"j" * 16, 1, "1.1", 5))
    first.flush()
    if closed:
        first.close()
    size = path.stat().st_size
    LedgerWriter.open(path, HEADER, opened, lambda state, before: [PERHAPS] if before == OPENED else [])
    return read_ledger(path, size).records


def test_what_may_be_missing_after_a_power_loss_is_noted_before_the_next_agent(tmp_path: Path) -> None:
    assert reopened(tmp_path / "l", LATER, closed=False) == [PERHAPS, LATER]
    assert [doubt.row for doubt in LedgerState.load(tmp_path / "l").in_doubt] == [3, 4]


@pytest.mark.parametrize(("opened", "closed"), [(LATER, True), (LATER._replace(boot_id="boot-a"), False)])
def test_nothing_can_be_missing_after_an_orderly_end_or_in_the_same_boot(
    tmp_path: Path, opened: Opened, closed: bool
) -> None:
    assert reopened(tmp_path / "l", opened, closed=closed) == [opened]


def test_an_agent_that_dies_while_it_notes_them_leaves_that_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "l"

    def dies(state: LedgerState, before: Opened) -> list[Record]:
        raise KeyboardInterrupt

    LedgerWriter.open(path, HEADER, OPENED)
    with pytest.raises(KeyboardInterrupt):
        LedgerWriter.open(path, HEADER, LATER, dies)
    asked: list[Opened] = []
    LedgerWriter.open(path, HEADER, LATER, lambda state, before: asked.append(before) or [])
    assert asked == [OPENED]


def amended(outcome: Outcome) -> Amended:
    return Amended(0, outcome, 0, "", "q", "1.1", 0, "other", 9, "recalled: the send was stopped")


def test_an_outcome_may_be_amended_where_it_can_change_and_nowhere_else() -> None:
    was = Final(0, Outcome.INJECTED, 250, "", "q", "1.1", 0, "other", 8, "")
    for before in Outcome:
        for after in Outcome:
            story = [HEADER, was._replace(outcome=before), decode(encode(amended(after)).rstrip(b"\n"))]
            if after in AMENDABLE.get(before, ()):
                assert LedgerState.of(story).outcomes == {0: after}
            else:
                with pytest.raises(LedgerError, match=f"row 0 is {before} and can't become {after}"):
                    LedgerState.of(story)
    with pytest.raises(LedgerError, match="row 0 is without an outcome"):
        LedgerState.of([HEADER, amended(Outcome.CANCELLED)])
