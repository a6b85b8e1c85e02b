# One image for every role: Airflow's api-server, scheduler, dag-processor and triggerer, and `mailfleet serve`.
# The command decides which (compose.yaml). OS packages are those that packages.txt marks [image], and while it is
# built [build]; Python packages are requirements.txt, by hash. pip takes its index and certificates from the builder's
# own /etc/pip.conf, mounted if there is need; nothing of that stays in the image.

FROM debian:bookworm-slim AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY packages.txt ./
RUN apt-get update \
 && apt-get install -y --no-install-recommends $(awk '/^[^#]/ && /\[build\]/ {print $1}' packages.txt) \
 && python3 -m venv /opt/mailfleet
COPY requirements.txt ./
RUN /opt/mailfleet/bin/pip install --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE requirements-agent.txt ./
COPY mailer_lib ./mailer_lib
COPY include ./include
RUN /opt/mailfleet/bin/pip install --no-deps .

FROM debian:bookworm-slim
COPY packages.txt /tmp/
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && apt-get install -y --no-install-recommends $(awk '/^[^#]/ && /\[image\]/ {print $1}' /tmp/packages.txt) \
 && rm -rf /var/lib/apt/lists/* /tmp/packages.txt \
 && useradd --uid 10001 --create-home --shell /usr/sbin/nologin mailfleet \
 && install -d -o mailfleet -g mailfleet -m 0700 /var/lib/mailfleet \
 && install -d -o mailfleet -g mailfleet /opt/airflow /opt/airflow/logs
COPY --from=build /opt/mailfleet /opt/mailfleet
COPY dags /opt/airflow/dags
COPY plugins /opt/airflow/plugins
COPY include /opt/airflow/include
ENV PATH=/opt/mailfleet/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    MAILFLEET_HOME=/var/lib/mailfleet \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
USER mailfleet
WORKDIR /opt/airflow
VOLUME ["/var/lib/mailfleet"]
CMD ["mailfleet", "--help"]
