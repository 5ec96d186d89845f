# Two images from one file: `api` without torch (API, sweeper, migrations) and `worker` with it.
#
#   docker build --target api --tag modelpress-api .
#   docker build --target worker --tag modelpress-worker .
#
# pip takes torch from where it takes everything. Without a GPU, the smaller CPU build is found through an
# additional index, which PyTorch's installation page names:
#   docker build --target worker --build-arg PIP_EXTRA_INDEX_URL=... --tag modelpress-worker .
# For weights that come with the name of a timm network: --build-arg EXTRAS=worker,timm

FROM python:3.11-slim-bookworm AS python
ENV PATH=/opt/modelpress/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/modelpress

FROM python AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY modelpress modelpress
COPY app app
COPY workers workers
COPY migrations migrations

FROM source AS api-install
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[server]'

FROM source AS worker-install
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=worker
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt ".[$EXTRAS]"

FROM python AS runtime
ENV MODELPRESS_HOME=/var/lib/modelpress
RUN useradd --uid 10001 --user-group --home-dir /var/lib/modelpress --create-home modelpress \
    && chmod 0700 /var/lib/modelpress
USER modelpress
WORKDIR /var/lib/modelpress
VOLUME /var/lib/modelpress

FROM runtime AS api
COPY --from=api-install /opt/modelpress /opt/modelpress
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/health/ready', timeout=4)"]
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8765", "--no-access-log", "--timeout-graceful-shutdown", "5"]

FROM runtime AS worker
COPY --from=worker-install /opt/modelpress /opt/modelpress
HEALTHCHECK --interval=60s --timeout=15s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from app import broker, db; db.engine().connect().close(); raise SystemExit(not broker.is_reachable())"]
CMD ["celery", "--app", "workers.tasks:celery", "worker", "--concurrency", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
