# One image for every role: web, worker, dispatcher, flower. Which one a container is, its command says (docker-compose.yml).
# The slim tag keeps getting Python's and Debian's security fixes; constraints.txt pins everything above it.
FROM python:3.11-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY core core
COPY api api
COPY worker worker
COPY migrations migrations
COPY plugins plugins
# In the environment, because --constraint would not hold for the build tools, which pip installs apart. Newer versions of pip
# read a name of its own for those.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . ./plugins/*
RUN python -m venv --without-pip /opt/taskyard \
    && pip --python /opt/taskyard/bin/python install --no-cache-dir "$(echo /wheels/taskyard-*.whl)[api,worker,flower]" /wheels/taskyard_*.whl

FROM python:3.11-slim
RUN groupadd --system --gid 10001 taskyard \
    && useradd --system --uid 10001 --gid taskyard --no-create-home --home-dir /app taskyard
ENV PATH=/opt/taskyard/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /opt/taskyard /opt/taskyard
# For `alembic` in the container. Its folder is writable, so that `alembic revision` works where the root file system is.
COPY alembic.ini ./
COPY --chown=taskyard:taskyard migrations migrations
# By number: an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# No HEALTHCHECK: each role has its own, and docker-compose.yml names it. One for the web role would call every worker sick.
CMD ["taskyard", "serve"]
