"""Every DAG parses without a database, and has what all DAGs of ours have."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.airflow_home import PROJECT

DAGS = PROJECT / "dags"
EXPECTED = {
    "campaign_control", "campaign_schedule", "campaign_send", "fleet_health", "fleet_scale", "housekeeping",
    "recall_due", "server_control",
}  # fmt: skip
_PARSE = """
import json, socket, sys, time

def refuse(*arguments, **more):
    raise AssertionError("a DAG file opens a network connection while it is parsed")

socket.socket.connect = refuse
from airflow.dag_processing.dagbag import DagBag

began = time.monotonic()
bag = DagBag(dag_folder=sys.argv[1])
print("RESULT" + json.dumps({
    "seconds": time.monotonic() - began,
    "errors": bag.import_errors,
    "dags": sorted(bag.dags),
    "engines": [name for name in ("MySQLdb", "pandas", "mailer_lib.database.engine") if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def dagbag():
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(DAGS))


@pytest.fixture(params=sorted(EXPECTED))
def one(request, dagbag):
    return dagbag.dags[request.param]


def test_every_dag_file_parses_and_holds_the_dag_that_it_is_named_after(dagbag):
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == EXPECTED == {path.stem for path in DAGS.glob("*.py")}


def test_parsing_needs_neither_a_usable_home_nor_a_network(tmp_path, capsys):
    locked = tmp_path / "no-such" / "home"
    (tmp_path / "no-such").write_text("a file where a folder should be")
    environment = {
        **os.environ,
        "MAILFLEET_HOME": str(locked),
        "MAILFLEET_DATABASE_URL": "mysql+mysqldb://nobody@192.0.2.1/none",
        "MAILFLEET_SERVE_PORT": "not a number",
        "PYTHONPATH": str(PROJECT),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(DAGS)], env=environment, capture_output=True, text=True, timeout=120
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line is not None, done.stderr[-2000:]
    result = json.loads(line.removeprefix("RESULT"))
    assert result["errors"] == {}
    assert set(result["dags"]) == EXPECTED
    assert result["engines"] == [], "a DAG file imports the database or pandas while it is parsed"
    with capsys.disabled():
        print(f" [all DAGs parsed in {result['seconds']:.2f} s]", end="")


def test_the_doc_is_the_files_docstring_and_says_how_to_use_stop_and_recover(one):
    docstring = ast.get_docstring(ast.parse(Path(one.fileloc).read_text()))
    assert docstring is not None
    assert one.doc_md.strip() == docstring.strip()
    for word in ("## Parameters", "stop", "recover"):
        assert word.lower() in one.doc_md.lower(), f"the page of {one.dag_id} doesn't speak of {word!r}"


def test_each_parameter_is_explained_in_the_doc(one):
    for name in one.params:
        assert f"**{name}**" in one.doc_md


def test_tags_come_from_the_enum(one):
    from mailfleet_airflow.policy import Tag

    assert one.tags
    assert set(one.tags) <= {tag.value for tag in Tag}


def test_owner_and_retries_of_every_task(one):
    from mailfleet_airflow.policy import OWNER

    for task in one.tasks:
        assert task.owner == OWNER, task.task_id
        assert task.retries >= 2, task.task_id


def test_airflow_pools_are_those_that_the_set_up_makes(one):
    from mailfleet_airflow.policy import POOL_SLOTS

    for task in one.tasks:
        assert task.pool in {"default_pool", *POOL_SLOTS}, task.task_id


def test_dispatch_runs_in_its_own_airflow_pool(dagbag):
    from mailfleet_airflow.policy import AirflowPool

    assert dagbag.dags["campaign_send"].get_task("dispatch").pool == AirflowPool.DISPATCH


def test_nothing_is_caught_up_and_nothing_runs_before_somebody_asks(one):
    assert one.catchup is False
    if "operator" in one.tags:
        assert one.schedule is None


def test_the_last_task_always_runs_and_decides(dagbag):
    from airflow.sdk import TriggerRule

    (last,) = dagbag.dags["campaign_send"].leaves
    assert last.task_id == "report"
    assert last.trigger_rule == TriggerRule.ALL_DONE


def test_a_dag_file_fits_on_two_screens_after_its_page(one):
    code = Path(one.fileloc).read_text().split('"""', 2)[2]
    assert len(code.splitlines()) <= 110
