"""Mailfleet: permission-based e-mail marketing, one module a stage of the road in docs/architecture.md.

Nothing in this package imports Airflow; ``dags/`` and ``plugins/`` wire these stages together.
"""

__version__ = "0.1.0"
