"""Airflow for tests of the plugin: a home of its own, made before anything imports airflow."""

from tests.airflow_home import prepare

prepare()
