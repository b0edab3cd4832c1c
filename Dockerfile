# One image for every process of Sluice; the command selects the process (docker-compose.yml).
#
# The base image is pinned to a release. For production, pin its digest too:
#   docker build --build-arg PYTHON_IMAGE=python:3.11.13-slim-bookworm@sha256:… .
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
COPY requirements.txt constraints.txt ./
# All packages are wheels: no compiler is needed. pytest is in the list for developers, and nothing here
# uses setuptools, which Sanic asks for. The base image's pip installs: the virtual environment needs none.
RUN python -m venv --without-pip /venv \
    && sed '/^pytest/d' requirements.txt >production.txt \
    && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check --only-binary :all: -c constraints.txt -r production.txt \
    && python -m pip --python /venv/bin/python uninstall --yes --quiet setuptools
COPY beat_schedule.py ./
COPY ingest ./ingest
COPY pipeline ./pipeline
COPY sluice ./sluice
COPY tasks ./tasks
COPY clients/python/src/sluice_client ./sluice_client
COPY monitoring/flowerconfig.py ./monitoring/flowerconfig.py
COPY docs/runbooks ./docs/runbooks
RUN rm production.txt && /venv/bin/python -m compileall -q /app

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="HTTP event and log ingestion gateway with adaptive backpressure"
WORKDIR /app
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    INGEST_HOST=0.0.0.0 \
    OPERATOR_PORT=8081 \
    LOG_FORMAT=json
# Port 8081 has the live page, health and metrics, and is on the container's own loopback address: from outside, set
# OPERATOR_HOST=0.0.0.0 and OPERATOR_PASSWORD.
# The mount point for EVENT_SINK_URL=file:///archive. A new volume takes over its mode: any user can write.
RUN mkdir -m 1777 /archive
# A number, so that an orchestrator can check that it is not root. This user owns nothing in the image.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# For ingest, the default command; docker-compose.yml has the checks of the other processes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-m", "ingest.ready"]
CMD ["python", "-m", "ingest"]
