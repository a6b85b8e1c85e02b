"""An AIRFLOW_HOME of this test process, so that no test reads or writes somebody's ~/airflow."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def prepare() -> None:
    """Point Airflow to this checkout and a temporary home. Has no effect once airflow is imported."""
    if str(PROJECT / "plugins") not in sys.path:  # a worker of xdist may inherit the environment, but not this
        sys.path.append(str(PROJECT / "plugins"))
    if "TEST_AIRFLOW_HOME" in os.environ:
        return
    home = tempfile.mkdtemp(prefix="airflow-test-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "TEST_AIRFLOW_HOME": home,
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
