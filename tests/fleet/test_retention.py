"""Old verifications and looks at servers are dropped; what the present is judged by stays."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import server_checks, server_health
from mailer_lib.fleet import health_book, pools, servers
from mailer_lib.fleet import server_checks as checks


@pytest.fixture
def fleet(engine: Engine) -> dict[str, int]:
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        return {
            name: servers.add(
                connection, servers.make_spec(name=name, pool="main", helo_name=f"{name}.example.com"), actor="test"
            )[0]
            for name in ("old", "new")
        }


def test_the_newest_verification_and_the_newest_that_was_passed_stay(engine: Engine, fleet: dict[str, int]) -> None:
    for server, days, errors in (
        ("old", 400, 0), ("old", 300, 0), ("old", 200, 2), ("old", 190, 1), ("new", 300, 0), ("new", 10, 3),
        ("new", 1, 0),
    ):  # fmt: skip
        with write(engine) as connection:
            connection.execute(
                insert(server_checks).values(
                    server_id=fleet[server], at=now() - timedelta(days=days), actor="test", errors=errors, subject={},
                    findings=[],
                )
            )  # fmt: skip
    with write(engine) as connection:
        assert checks.forget_old(connection, now()) == 3
        assert checks.forget_old(connection, now()) == 0
    with read(engine) as connection:
        kept = connection.execute(
            select(server_checks.c.server_id, server_checks.c.errors).order_by(server_checks.c.id)
        )
        assert [tuple(row) for row in kept] == [
            (fleet["old"], 0), (fleet["old"], 1), (fleet["new"], 3), (fleet["new"], 0),
        ]  # fmt: skip


def test_the_newest_look_stays_also_of_a_server_that_nobody_looks_at_any_more(
    engine: Engine, fleet: dict[str, int]
) -> None:
    with write(engine) as connection:
        for server, days in (("old", 50), ("old", 40), ("old", 30), ("new", 20), ("new", 13), ("new", 0)):
            connection.execute(
                insert(server_health).values(
                    server_id=fleet[server], at=now() - timedelta(days=days), verdict="well", reasons=[]
                )
            )
        assert health_book.forget_old(connection, now()) == 3
        assert health_book.forget_old(connection, now()) == 0
    with read(engine) as connection:
        kept = connection.scalars(select(server_health.c.server_id).order_by(server_health.c.at)).all()
    assert kept == [fleet["old"], fleet["new"], fleet["new"]]
