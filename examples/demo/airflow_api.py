"""Airflow over its REST API, as an operator's program would use it: log in, trigger, answer, watch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx

POOL_ATTEMPTS = (
    5  # while Airflow starts, its SQLite may be locked for longer than it waits: seen once, "Database error"
)
SETTLE_S = 3.0  # a question answered sooner may be asked twice: docs/decisions/0801
FINAL_RUN_STATES = {"success", "failed"}


class AirflowApiError(RuntimeError):
    """Airflow refused, or a run took too long; the sentence holds Airflow's words."""


@dataclass
class AirflowApi:
    """Signed in as one user of the simple auth manager."""

    url: str
    user: str
    password: str = field(repr=False)
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._client = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)
        token = self._client.post("/auth/token", json={"username": self.user, "password": self.password})
        if token.status_code != httpx.codes.CREATED:
            raise AirflowApiError(f"Airflow doesn't let {self.user} in: {token.status_code} {token.text[:200]}")
        self._client.headers["Authorization"] = f"Bearer {token.json()['access_token']}"

    @property
    def authorization(self) -> str:
        """The header that says who we are."""
        return str(self._client.headers["Authorization"])

    def close(self) -> None:
        self._client.close()

    def wait_for_dags(self, wanted: set[str], timeout_s: float = 90.0) -> None:
        """Until the DAG processor has read ``wanted``, and none has an import error."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = {dag["dag_id"] for dag in self._get("/dags", limit=100)["dags"]}
            if wanted <= found:
                return
            errors = self._get("/importErrors")["import_errors"]
            if errors:
                raise AirflowApiError(f"{errors[0]['filename']} can't be read:\n{errors[0]['stack_trace']}")
            if time.monotonic() > deadline:
                raise AirflowApiError(f"Airflow doesn't know {', '.join(sorted(wanted - found))} yet")
            time.sleep(0.3)

    def make_pool(self, name: str, slots: int) -> None:
        """An Airflow pool of this size; one that exists is left alone."""
        pool = {"name": name, "slots": slots, "include_deferred": False}
        for attempt in range(POOL_ATTEMPTS):
            answer = self._client.post("/api/v2/pools", json=pool)
            if answer.status_code in (httpx.codes.CREATED, httpx.codes.CONFLICT):
                return
            if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR or attempt == POOL_ATTEMPTS - 1:
                raise _refused(answer)
            time.sleep(1.0)

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run; returns its id."""
        answer = self._client.post(f"/api/v2/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": dict(conf)})
        if answer.status_code != httpx.codes.OK:
            raise _refused(answer)
        return str(answer.json()["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self._get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run, the mapped ones included."""
        found = self._get(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances", limit=200)
        return list(found["task_instances"])

    def task_state(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        return next((t["state"] for t in self.tasks(dag_id, run_id) if t["task_id"] == task_id), None)

    def mark_failed(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """What the button *Mark as … failed* of a task does."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/{map_index}"
        answer = self._client.patch(path, json={"new_state": "failed"})
        if answer.status_code != httpx.codes.OK:
            raise _refused(answer)

    def clear(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """What the button *Clear* of one task does, with nothing after it."""
        path = f"/api/v2/dags/{dag_id}/clearTaskInstances"
        task: list[Any] = [task_id] if map_index < 0 else [[task_id, map_index]]
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": task}
        answer = self._client.post(path, json=body)
        if answer.status_code != httpx.codes.OK:
            raise _refused(answer)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}"
        return self._get(path, deserialize=False, stringify=False)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """One task's log as plain lines."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
        lines = self._get(path, map_index=map_index, full_content=True)["content"]
        return "\n".join(_log_line(line) for line in lines)

    def question(self, dag_id: str, run_id: str, task_id: str = "approval") -> dict[str, Any] | None:
        """What a waiting task asks: ``subject``, ``body``, ``options``; None while it doesn't ask."""
        answer = self._client.get(self._hitl(dag_id, run_id, task_id))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        found = _body(answer)
        return None if found["response_received"] else found

    def answer(self, dag_id: str, run_id: str, option: str, task_id: str = "approval") -> None:
        answer = self._client.patch(self._hitl(dag_id, run_id, task_id), json={"chosen_options": [option]})
        if answer.status_code != httpx.codes.OK:
            raise _refused(answer)

    def wait_for_question(self, dag_id: str, run_id: str, timeout_s: float = 300.0) -> dict[str, Any]:
        """Until the run asks for approval.

        Raises:
            AirflowApiError: it ended, or didn't ask in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            asked = self.question(dag_id, run_id)
            if asked is not None and self.task_state(dag_id, run_id, "approval") == "awaiting_input":
                time.sleep(SETTLE_S)
                return asked
            state = self.run(dag_id, run_id)["state"]
            if state in FINAL_RUN_STATES:
                raise AirflowApiError(f"the run ended as {state} before it asked:\n{self.explain(dag_id, run_id)}")
            if time.monotonic() > deadline:
                raise AirflowApiError(f"no question after {timeout_s:.0f} s:\n{self.explain(dag_id, run_id)}")
            time.sleep(0.4)

    def wait(self, dag_id: str, run_id: str, timeout_s: float = 300.0) -> str:
        """Until the run has ended; returns its state."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = str(self.run(dag_id, run_id)["state"])
            if state in FINAL_RUN_STATES:
                return state
            if time.monotonic() > deadline:
                raise AirflowApiError(f"still {state} after {timeout_s:.0f} s:\n{self.explain(dag_id, run_id)}")
            time.sleep(0.5)

    def explain(self, dag_id: str, run_id: str) -> str:
        """States of all tasks, and the last lines of the logs of those that failed."""
        parts = []
        for ti in self.tasks(dag_id, run_id):
            parts.append(f"{ti['task_id']}[{ti['map_index']}] {ti['state']} (try {ti['try_number']})")
            if ti["state"] in ("failed", "up_for_retry", "running"):
                try:
                    lines = self.log(dag_id, run_id, ti["task_id"], max(1, ti["try_number"]), ti["map_index"])
                except AirflowApiError:
                    continue
                parts.append("\n".join("    " + line for line in lines.splitlines()[-25:]))
        return "\n".join(parts)

    def _hitl(self, dag_id: str, run_id: str, task_id: str) -> str:
        run = quote(run_id, safe="")
        return f"/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}/-1/hitlDetails"

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return _body(self._client.get(f"/api/v2{path}", params=query or None))


def _log_line(line: Any) -> str:
    """The event, and with an error its type and words."""
    if not isinstance(line, dict):
        return str(line)
    errors = [f"{e.get('exc_type')}: {e.get('exc_value')}" for e in line.get("error_detail") or []]
    return " | ".join([str(line.get("event", "")), *errors])


def seconds_between(began: str, ended: str) -> float:
    """Between two of Airflow's time stamps."""
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def _body(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != httpx.codes.OK:
        raise _refused(answer)
    body: dict[str, Any] = answer.json()
    return body


def _refused(answer: httpx.Response) -> AirflowApiError:
    return AirflowApiError(f"Airflow answered {answer.status_code} to {answer.request.url.path}: {answer.text[:500]}")
