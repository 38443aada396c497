# The processes of the pipeline on servers given by URL: code location, daemon, UI, metrics, Celery worker, `outbox …`.
# It has no embedded engines. deploy/compose.yaml runs all of it; docs/deploying.md says what each process needs.
#
# Behind a package index of your own: docker build --secret id=pip,src=pip.conf . leaves its address in no layer.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements-build.lock requirements-image.lock ./
# pip stays here: what runs later installs nothing.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /opt/build \
    && python -m venv --without-pip /opt/outbox \
    && /opt/build/bin/python -m pip install --quiet --require-hashes -r requirements-build.lock \
    && /opt/build/bin/python -m pip --python /opt/outbox/bin/python install --quiet --require-hashes -r requirements-image.lock
COPY LICENSE README.md pyproject.toml ./
COPY outbox_pipeline outbox_pipeline
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
    && /opt/build/bin/python -m pip --python /opt/outbox/bin/python install --quiet --no-index --no-deps /dist/*.whl

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="outbox-pipeline" \
      org.opencontainers.image.description="Events from PostgreSQL to ClickHouse, exactly once, through Dagster" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 outbox \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/outbox --shell /usr/sbin/nologin outbox \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/outbox \
    && ln -s /etc/outbox/dagster.yaml /var/lib/outbox/dagster.yaml
COPY --from=build /opt/outbox /opt/outbox
COPY outbox_pipeline/orchestration/dagster.yaml deploy/image/workspace.yaml /etc/outbox/
# Dagster looks for its file in DAGSTER_HOME, which it also writes to: the one folder, beside /tmp, that must be writable.
ENV PATH=/opt/outbox/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/var/lib/outbox \
    DAGSTER_CODE_HOST=code \
    DAGSTER_CODE_PORT=4000 \
    OUTBOX_HOME=/var/lib/outbox \
    OUTBOX_LOG_FORMAT=json
WORKDIR /var/lib/outbox
# By number, so that a cluster that refuses root can tell that this is another.
USER 10001:10001
EXPOSE 3000 4000 9720
# The code location; its command forks runs, which start within half a second, and Dagster's own does not.
CMD ["python", "-P", "-m", "outbox_pipeline.orchestration.code_server", "api", "grpc", "-m", "outbox_pipeline.orchestration.definitions", "-h", "0.0.0.0", "-p", "4000", "--location-name", "outbox_pipeline"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s \
    CMD ["python", "-P", "-m", "outbox_pipeline.orchestration.host.serving", "localhost:4000"]
