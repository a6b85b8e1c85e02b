"""A real Airflow (scheduler, DAG processor, API server, triggerer), a real sink, real agents.

One stack for all tests of this module: it takes half a minute to start. The campaigns have few people and no MJML.
"""

import os
import signal
import time
from collections import Counter
from email import message_from_binary_file

import psutil
import pytest
from rich.console import Console
from sqlalchemy import Engine, func, select

from examples.demo.airflow_api import AirflowApi, AirflowApiError
from examples.demo.commands import mailfleet
from examples.demo.services import start_services
from examples.demo.setup import set_up
from examples.demo.stack import APPROVER, OPERATOR, VIEWER
from examples.demo.up import make_pools
from examples.demo.world import LIST, SERVERS, World
from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.schema import rollups_hourly, sends
from mailer_lib.dispatch.sends import find_send
from mailer_lib.settings import load_settings
from mailer_lib.terms import SendState
from tests.support import require_package

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.timeout(900),
]
DAG = "campaign_send"
PEOPLE = 300
CAMPAIGN = """\
name: {name}
list: newsletter
criteria: everybody
seed_list: team
from: {{name: Fjord & Fern, address: hello@news.fjordfern.example}}
sending_domain: news.fjordfern.example
sending_pool: main
subject: "Hello {{{{ contact.given_name }}}}"
template: {{html: letter.html}}
tracking: {{links: false, opens: false}}
postal_address: Fjord & Fern AS, Strandgaten 21, 5013 Bergen, Norway
defaults: {{given_name: friend}}
expires_after: 24h
approval: {{required: false}}
{more}
"""
LETTER = """\
<html><body><p>Hello {{ contact.given_name }}</p><p>{{ postal_address }}</p>
<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>
"""


class House:
    """A world with a running Airflow, and the few verbs that the tests need."""

    def __init__(self, world: World, engine: Engine, api: AirflowApi) -> None:
        self.world = world
        self.engine = engine
        self.api = api

    def campaign(self, name: str, **more: object) -> str:
        folder = self.world.root / "campaigns" / name
        folder.mkdir(parents=True)
        (folder / "letter.html").write_text(LETTER)
        lines = "\n".join(f"{key}: {value}" for key, value in more.items())
        (folder / "campaign.yaml").write_text(CAMPAIGN.format(name=name, more=lines))
        self.command("campaign", "create", str(folder / "campaign.yaml"))
        return name

    def command(self, *arguments: str) -> str:
        return mailfleet(Console(quiet=True), *arguments, show=False)

    def as_user(self, user: str) -> AirflowApi:
        return AirflowApi(self.world.stack.url, user, self.world.stack.password(user))

    def trigger(self, campaign: str, **conf: object) -> str:
        given = {"campaign": campaign, "edition": "1", "mode": "send", "approval": False, **conf}
        return self.api.trigger(DAG, given)

    def wait(self, run_id: str) -> str:
        return self.api.wait(DAG, run_id, 240)

    def received(self, campaign: str, edition: str = "1") -> list[str]:
        """Message-IDs in the Maildir, counted from the files alone."""
        ids = []
        for path in (self.world.maildir / "new").iterdir():
            with path.open("rb") as file:
                headers = message_from_binary_file(file)
            if f":{campaign}#{edition}:" in headers["Feedback-ID"]:
                ids.append(headers["Message-ID"])
        return ids

    def explain(self, run_id: str) -> str:
        return self.api.explain(DAG, run_id)

    def wait_until(self, condition, what: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    require_package("airflow")
    before = dict(os.environ)
    world = World(tmp_path_factory.mktemp("airflow"), people=500)
    world.adopt()
    try:
        world.stack.prepare()
        world.stack.start()
        set_up(world, Console(quiet=True))
        start_services(world)
        people = world.root / "people.csv"
        rows = [
            f"person{n}@{'gmail.com' if n % 3 else 'gmx.de'},Person {n},2026-01-01T10:00:00Z" for n in range(PEOPLE)
        ]
        people.write_text("E-Mail,First name,Signed up at\n" + "\n".join(rows) + "\n")
        quiet = Console(quiet=True)
        consent = ("--consent", "confirmed", "--consent-at", "Signed up at", "--consent-source", "test")
        mailfleet(quiet, "contacts", "import", str(people), "--list", LIST, *consent, show=False)
        rules = world.root / "everybody.json"
        rules.write_text('{"combinator": "and", "rules": [{"field": "given_name", "operator": "notNull"}]}')
        mailfleet(quiet, "criteria", "save", "everybody", str(rules), show=False)
        (world.sink / "rules.yaml").write_text("domains: {}\n")
        engine = open_engine(world.settings.url)
        world.stack.wait_healthy()
        api = AirflowApi(world.stack.url, OPERATOR, world.stack.password(OPERATOR))
        api.wait_for_dags({DAG, "campaign_control", "campaign_schedule"})
        make_pools(api)
        yield House(world, engine, api)
        engine.dispose()
    finally:
        world.stack.stop()
        world.services.stop()
        os.environ.clear()
        os.environ.update(before)
        load_settings.cache_clear()
    assert world.stack.processes.alive() == []
    assert world.services.alive() == []


def test_a_campaign_is_approved_and_sent_by_every_server_and_triggered_again_sends_nothing(house):
    campaign = house.campaign("approved")
    run_id = house.trigger(campaign, approval=True, approvers=[APPROVER])
    asked = house.api.wait_for_question(DAG, run_id)
    assert asked["subject"] == f"Send approved#1 to {PEOPLE} people?"
    for word in ("gmail", "gmx", "Forecast", "/p/"):
        assert word in asked["body"]
    assert house.received(campaign) == []
    with pytest.raises(AirflowApiError, match="not a respondent"):
        house.api.answer(DAG, run_id, "Approve")
    house.as_user(APPROVER).answer(DAG, run_id, "Approve")
    assert house.wait(run_id) == "success", house.explain(run_id)

    dispatch = [ti for ti in house.api.tasks(DAG, run_id) if ti["task_id"] == "dispatch"]
    assert sorted(ti["rendered_map_index"] for ti in dispatch) == list(SERVERS)
    books = house.api.xcom(DAG, run_id, "report")
    assert (books["frozen"], books["injected"], books["duplicates"]) == (PEOPLE, PEOPLE, 0)
    received = house.received(campaign)
    assert len(received) == len(set(received)) == PEOPLE
    with read(house.engine) as connection:
        send = find_send(connection, "approved#1")
    assert (send.state, send.launched_by, send.approved_by) == (SendState.FINISHED, OPERATOR, APPROVER)

    again = house.trigger(campaign)
    assert house.wait(again) == "success", house.explain(again)
    assert len(house.received(campaign)) == PEOPLE


def test_after_a_test_slice_a_run_waits_for_the_decision_and_sends_the_rest(house):
    variants = "[{name: A}, {name: B, subject: 'B for {{ contact.given_name }}'}]"
    campaign = house.campaign("sliced", variants=variants, test_slice="{people: 40}")
    run_id = house.trigger(campaign)

    def state() -> str:
        with read(house.engine) as connection:
            return str(connection.scalar(select(sends.c.state).order_by(sends.c.id.desc()).limit(1)))

    house.wait_until(lambda: state() == SendState.JUDGING, "the test slice is sent", 240)
    assert len(house.received(campaign)) == 40
    time.sleep(3)  # an answer within a moment of deferring is what Airflow loses (docs/decisions/0801)
    decided = house.api.trigger("campaign_control", {"send": "sliced#1", "action": "decide", "variant": "B"})
    assert house.api.wait("campaign_control", decided, 120) == "success"
    assert house.wait(run_id) == "success", house.explain(run_id)
    assert "40 people are the test slice; 260 are the rest" in house.api.log(DAG, run_id, "decision")
    rest = [ti for ti in house.api.tasks(DAG, run_id) if ti["task_id"] == "dispatch_rest"]
    assert sorted(ti["rendered_map_index"] for ti in rest) == list(SERVERS)
    received = house.received(campaign)
    assert len(received) == len(set(received)) == PEOPLE
    with read(house.engine) as connection:
        send = find_send(connection, "sliced#1")
        injected = connection.execute(
            select(rollups_hourly.c.variant, func.sum(rollups_hourly.c.count))
            .where(rollups_hourly.c.send_id == send.id, rollups_hourly.c.metric == "injected")
            .group_by(rollups_hourly.c.variant)
        ).all()
    assert (send.state, send.decided_by) == (SendState.FINISHED, OPERATOR)
    assert {variant: int(count) for variant, count in injected} == {0: 20, 1: 280}


@pytest.fixture(scope="module")
def three_runs(house):
    """Run ids of three runs that send nothing, side by side: by campaign."""
    for name in ("refused", "autumn-sale", "dry"):
        house.campaign(name)
    return {
        "refused": house.trigger("refused", approval=True),
        "autum-sale": house.trigger("autum-sale"),
        "dry": house.trigger("dry", mode="dry-run"),
    }


def test_an_unknown_campaign_fails_at_once_with_near_matches(house, three_runs):
    run_id = three_runs["autum-sale"]
    assert house.wait(run_id) == "failed"
    assert "did you mean autumn-sale" in house.api.log(DAG, run_id, "open")
    assert next(ti["try_number"] for ti in house.api.tasks(DAG, run_id) if ti["task_id"] == "open") == 1


def test_a_dry_run_counts_and_sends_nothing(house, three_runs):
    run_id = three_runs["dry"]
    assert house.wait(run_id) == "success", house.explain(run_id)
    assert house.api.xcom(DAG, run_id, "summary")["frozen"] == PEOPLE
    assert house.received("dry") == house.received("dry", "dry-1") == []


def test_a_rejected_send_fails_with_the_name_and_sends_nothing(house, three_runs):
    run_id = three_runs["refused"]
    house.api.wait_for_question(DAG, run_id)
    house.as_user(APPROVER).answer(DAG, run_id, "Reject")
    assert house.wait(run_id) == "failed"
    assert f"rejected by {APPROVER}" in house.api.log(DAG, run_id, "report")
    assert house.received("refused") == []
    with read(house.engine) as connection:
        send = find_send(connection, "refused#1")
    assert (send.state, send.reason) == (SendState.REJECTED, f"rejected by {APPROVER}")


def test_a_killed_worker_s_retry_takes_up_its_agent_and_nobody_gets_it_twice(house):
    campaign = house.campaign("killed", pace_per_s=25)
    run_id = house.trigger(campaign)
    house.wait_until(lambda: len(house.received(campaign)) >= 20 and len(_agents(house)) == 3, "all servers send")
    agents = _agents(house)
    os.kill(_task_process(house, "local-1"), signal.SIGKILL)
    assert set(agents) <= set(_agents(house)), "an agent outlives the worker that started it"
    assert house.wait(run_id) == "success", house.explain(run_id)

    tries = {
        ti["rendered_map_index"]: ti["try_number"] for ti in house.api.tasks(DAG, run_id) if ti["task_id"] == "dispatch"
    }
    assert tries["local-1"] >= 2
    books = house.api.xcom(DAG, run_id, "report")
    received = Counter(house.received(campaign))
    assert sum(received.values()) == books["injected"] == PEOPLE
    assert max(received.values()) == 1
    assert _agents(house) == []


def test_a_dispatch_task_marked_failed_stops_its_agent_and_a_second_trigger_sends_what_it_held(house):
    campaign = house.campaign("marked", pace_per_s=15)
    run_id = house.trigger(campaign)
    house.wait_until(lambda: len(_agents(house)) == 3, "all servers send")  # and their tasks have their names
    house.api.mark_failed(DAG, run_id, "dispatch", _map_index(house, run_id, "local-2"))
    house.wait_until(lambda: len(_agents(house)) == 2, "the agent of local-2 ends")
    state = house.wait(run_id)
    received = house.received(campaign)
    assert len(received) == len(set(received))
    held = PEOPLE - len(received)  # what local-2 had been granted and had not sent
    assert held < PEOPLE / 2
    assert state == ("failed" if held else "success"), house.explain(run_id)

    again = house.trigger(campaign)
    assert house.wait(again) == "success", house.explain(again)
    received = house.received(campaign)
    books = house.api.xcom(DAG, again, "report")
    assert len(received) == len(set(received)) == books["injected"] == PEOPLE


def test_control_pauses_and_stops_a_running_send_and_what_is_left_goes_out_when_triggered_again(house):
    campaign = house.campaign("stopped", pace_per_s=15)
    run_id = house.trigger(campaign)
    house.wait_until(lambda: len(house.received(campaign)) >= 10, "the first 10 messages")
    paused = house.api.trigger("campaign_control", {"send": "stopped#1", "action": "pause"})
    assert house.api.wait("campaign_control", paused) == "success"
    house.wait_until(lambda: _stands_still(house, campaign), "the send stands still")
    while_paused = len(house.received(campaign))
    assert 10 <= while_paused < PEOPLE
    stopped = house.api.trigger("campaign_control", {"send": "stopped#1", "action": "stop"})
    assert house.api.wait("campaign_control", stopped) == "success"
    assert house.wait(run_id) == "success", house.explain(run_id)
    with read(house.engine) as connection:
        assert find_send(connection, "stopped#1").state == SendState.STOPPED
    assert len(house.received(campaign)) == while_paused

    house.command("campaign", "show", campaign)
    again = house.trigger(campaign)
    house.wait_until(lambda: len(house.received(campaign)) > while_paused, "the rest goes out")
    faster = house.api.trigger("campaign_control", {"send": "stopped#1", "action": "pace", "pace_per_s": 0})
    assert house.api.wait("campaign_control", faster) == "success"
    assert house.wait(again) == "success", house.explain(again)
    received = house.received(campaign)
    assert len(received) == len(set(received)) == PEOPLE


def test_who_only_looks_reads_the_page_of_sends_and_can_t_trigger(house):
    import httpx

    page = f"{house.world.stack.url}/mailfleet/sends"
    assert httpx.get(page, trust_env=False).status_code == 401
    viewer = house.as_user(VIEWER)
    shown = httpx.get(page, headers={"Authorization": viewer.authorization}, trust_env=False)
    assert shown.status_code == 200, shown.text[:500]
    with pytest.raises(AirflowApiError, match="403"):
        viewer.trigger(DAG, {"campaign": "approved"})


def _map_index(house: House, run_id: str, label: str) -> int:
    return next(ti["map_index"] for ti in house.api.tasks(DAG, run_id) if ti["rendered_map_index"] == label)


def _stands_still(house: House, campaign: str) -> bool:
    before = len(house.received(campaign))
    time.sleep(2.5)
    return len(house.received(campaign)) == before


def _task_process(house: House, label: str) -> int:
    """The process of Airflow that runs the dispatch task of one server: its agent's parent."""
    (agent,) = [pid for pid in _agents(house) if any(f"/{label}.0" in part for part in _cmdline(psutil.Process(pid)))]
    return psutil.Process(agent).ppid()


def _agents(house: House) -> list[int]:
    """Pids of the living agents of this house."""
    folder = str(house.world.home / "jobs")
    return [process.pid for process in psutil.process_iter() if any(folder in part for part in _cmdline(process))]


def _cmdline(process: psutil.Process) -> list[str]:
    """Empty for a zombie, and for a process that has gone meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
