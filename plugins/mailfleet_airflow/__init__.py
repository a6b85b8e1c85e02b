"""What Mailfleet's DAGs share: operators, a trigger, tags and policy. Thin: everything that decides is in mailer_lib.

``plugins/`` is on Airflow's path, so DAGs import it as ``mailfleet_airflow``.
"""
