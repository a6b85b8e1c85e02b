"""The demo: a whole campaign through Airflow on one machine (``python -m examples.demo.run``)."""
