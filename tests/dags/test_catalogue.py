"""docs/dags.md says what the DAGs' own pages say."""

import subprocess
import sys

from tests.airflow_home import PROJECT


def test_the_catalogue_is_up_to_date():
    done = subprocess.run([sys.executable, str(PROJECT / ".ci" / "dag_catalogue.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python .ci/dag_catalogue.py"
