"""``mailfleet criteria`` as an operator uses it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.audience.events import Event, write_events
from tests.audience.world import LONG_AGO, ON_THE_LIST, World, rule

Mailfleet = Callable[..., Any]


@pytest.fixture
def world(engine: Engine, settings: Settings) -> World:
    return World.make(engine, settings)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "tree.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_save_show_list_and_count(world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]) -> None:
    world.add("a@example.org")
    world.add("b@example.org", state="pending")
    world.add("c@example.org", state=None)
    saved = mailfleet("criteria", "save", "readers", tree(ON_THE_LIST), "--description", "everybody on the list")
    assert (saved.code, saved.stdout) == (0, 'criteria "readers" stored\n')
    assert "replaced" in mailfleet("criteria", "save", "readers", tree(ON_THE_LIST)).stdout
    assert json.loads(mailfleet("criteria", "show", "readers").stdout) == ON_THE_LIST
    assert "everybody on the list" in mailfleet("criteria", "list").stdout
    counted = mailfleet("criteria", "count", "readers", "--list", "newsletter").stdout.split()
    assert counted[:4] == ["matching", "2", "mailable", "1"]
    assert counted[-2:] == ["1", "unconfirmed"]


def test_sql_shows_the_statement_and_what_is_bound(
    world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]
) -> None:
    mailfleet("criteria", "save", "gold", tree(rule("attribute.tier", "in", ["gold", "x'; --"])))
    shown = mailfleet("criteria", "sql", "gold")
    statement, *bound = shown.stdout.split("\n-- ")
    assert shown.code == 0
    assert "SELECT contacts.id" in statement and "x'" not in statement
    assert bound[-2:] == ["2: 'gold'", '3: "x\'; --"\n']


def test_check_says_what_is_asked_for_or_what_is_wrong(
    world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]
) -> None:
    mailfleet("criteria", "save", "gold", tree(rule("attribute.tier", "=", "gold")))
    mailfleet("criteria", "save", "others", tree(rule("criteria", "!=", "gold")))
    checked = mailfleet("criteria", "check", "others")
    assert (checked.code, checked.stdout) == (
        0,
        "others: fine, 1 rule\n  fields: attribute.tier\n  criteria: gold\n",
    )
    path = tree(rule("criteria", "=", "golden"))
    wrong = mailfleet("criteria", "check", path)
    assert wrong.code == 1
    assert f'{path}: $.rules[0].value: there are no criteria "golden"; did you mean "gold"?' in wrong.stderr
    circle = mailfleet("criteria", "save", "gold", tree(rule("criteria", "=", "others")))
    assert circle.code == 1 and "leads back to itself: gold → others → gold" in circle.stderr


def test_explain_shows_the_plan_and_warns_of_scans(
    world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]
) -> None:
    for n in range(50):
        world.add(f"a{n}@x{n}.example")
    mailfleet("criteria", "save", "gold", tree(rule("attribute.tier", "=", "gold")))
    explained = mailfleet("criteria", "explain", "gold")
    assert explained.code == 0
    assert "contacts" in explained.stdout
    says = "warning: every contact is read\nwarning: attribute.tier is read out of each contact's JSON; `mailfleet "
    assert f"{says}attributes index tier` would avoid it" in explained.stdout
    assert mailfleet("attributes", "index", "tier").stdout == "tier: indexed\n"
    explained = mailfleet("criteria", "explain", "gold").stdout
    assert "ix_attr_tier" in explained and "warning" not in explained
    assert mailfleet("criteria", "count", "gold", "--list", "newsletter").code == 0
    assert mailfleet("attributes", "unindex", "tier").stdout == "tier: no longer indexed\n"
    assert "every contact is read" in mailfleet("criteria", "explain", "gold").stdout
    assert mailfleet("attributes", "declare", "size=number", "--indexed").code == 0
    assert "yes" in mailfleet("attributes", "list").stdout
    mailfleet("criteria", "save", "home", tree(rule("domain", "=", "x1.example")))
    assert "warning" not in mailfleet("criteria", "explain", "home").stdout
    sample = {"sample": {"count": 3, "seed": "x"}}
    mailfleet("criteria", "save", "some", tree(rule("domain", "=", "x1.example") | sample))
    assert "one more pass" in mailfleet("criteria", "explain", "some").stdout


def test_behaviour_is_counted_explained_and_shown(
    world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]
) -> None:
    ann, _ = world.add("ann@example.org"), world.add("bob@example.org")
    write_events(world, {ann: [Event("opened", LONG_AGO)] * 2})
    mailfleet("criteria", "save", "readers", tree(rule("behaviour.opened", "=", {"times": 2, "campaign": "welcome"})))
    counted = mailfleet("criteria", "count", "readers", "--list", "newsletter")
    assert counted.stdout.split()[:2] == ["matching", "0"]
    mailfleet("criteria", "save", "readers", tree(rule("behaviour.opened", "=", 2)))
    counted = mailfleet("criteria", "count", "readers", "--list", "newsletter")
    assert (counted.code, counted.stdout.split()[:2]) == (0, ["matching", "1"])
    shown = mailfleet("criteria", "sql", "readers").stdout
    assert "EXISTS (SELECT behaviour_" in shown and ": opened 2 to 2 times until " in shown
    assert "behaviour_" in mailfleet("criteria", "explain", "readers").stdout
    assert mailfleet("behaviour", "refresh").code == 0


def test_errors_are_sentences_with_file_and_path(
    world: World, mailfleet: Mailfleet, tree: Callable[[Any], Path]
) -> None:
    path = tree(rule("attribute.teir", "=", "gold"))
    wrong = mailfleet("criteria", "save", "gold", path)
    assert wrong.code == 1
    says = 'there is no field "attribute.teir"; did you mean "attribute.tier"?'
    assert f"{path}: $.rules[0].field: {says}" in wrong.stderr
    assert "isn't JSON" in mailfleet("criteria", "save", "gold", tree("{")).stderr
    assert mailfleet("criteria", "show", "gold").code == 1
    assert "No such file" in mailfleet("criteria", "save", "gold", path.with_name("missing.json")).stderr
    mailfleet("criteria", "save", "readers", tree(ON_THE_LIST))
    assert "--list newsletter or offers" in mailfleet("criteria", "count", "readers").stderr
    assert 'no list "nws"' in mailfleet("criteria", "count", "readers", "--list", "nws").stderr
