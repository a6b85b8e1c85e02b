from pathlib import Path

from mailer_lib.agent.suppressions import LateSuppressions
from tests.support_agent import recipients

ANN, BOB = recipients(2)


def test_lines_come_into_force_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "suppressions.log"
    late = LateSuppressions(path)
    assert not late.poll()  # no file yet
    assert not late.holds(ANN)
    path.write_text(ANN.address_hash.hex() + "\n")
    assert late.poll() and not late.poll()
    assert late.holds(ANN) and not late.holds(BOB)
    with path.open("a") as file:
        file.write("@other.example\n")
    assert late.poll()
    assert late.holds(BOB)
    assert late.lines == 2


def test_a_line_without_its_end_waits(tmp_path: Path) -> None:
    path = tmp_path / "suppressions.log"
    late = LateSuppressions(path)
    path.write_text(ANN.address_hash.hex()[:20])
    assert not late.poll()
    path.write_text(ANN.address_hash.hex() + "\n")
    assert late.poll()
    assert late.holds(ANN)


def test_lines_of_another_kind_are_counted_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "suppressions.log"
    path.write_text(f"ann@example.org\n\n@\n{ANN.address_hash.hex().upper()}\n")
    late = LateSuppressions(path)
    late.poll()
    assert late.bad_lines == 2
    assert late.holds(ANN) and not late.holds(BOB)


def test_a_file_that_was_replaced_takes_nothing_back(tmp_path: Path) -> None:
    path = tmp_path / "suppressions.log"
    late = LateSuppressions(path)
    path.write_text(f"{ANN.address_hash.hex()}\n" * 3)
    late.poll()
    path.write_text(f"{BOB.address_hash.hex()}\n")
    late.poll()
    assert late.holds(ANN) and late.holds(BOB)
