"""Alembic's folder: one module for each change of the tables. ``database/migrate.py`` runs them."""
