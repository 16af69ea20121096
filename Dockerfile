# One image for the server, the publisher and the load runner: they differ by their command.
# 3.12: the tests run with it, and it gets fixes until October 2028, which is longer than the
# Debian 12 under it does (June 2028).
ARG PYTHON=3.12-slim-bookworm

FROM docker.io/library/python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The locks are complete, so nothing is looked for beside them.
COPY requirements.lock requirements-build.lock ./
RUN pip install --no-deps --require-hashes -r requirements-build.lock \
    && python -m venv --without-pip /opt/trio-odin \
    && pip --python /opt/trio-odin/bin/python install --no-compile --no-deps --require-hashes \
        -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY trio_odin trio_odin
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/trio-odin/bin/python install --no-compile --no-deps --no-index /wheels/*.whl \
    && find /opt/trio-odin -type d \( -name tests -o -name _tests \) -prune -exec rm -r {} + \
    # Unchecked, so not by the time of a source file, which is another one in each build.
    && python -m compileall -q -f --invalidation-mode unchecked-hash /opt/trio-odin/lib

FROM docker.io/library/python:${PYTHON}
# The base has no bytecode, and a read-only root gets none: without it each start, and so each
# health check, takes more than twice the CPU. What installs packages is of no use any more.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip \
        /usr/local/lib/python3.*/site-packages/pip* \
    && python -m compileall -q -f --invalidation-mode unchecked-hash \
        -x '/(idlelib|lib2to3|pydoc_data|tkinter|turtledemo|unittest)/' /usr/local/lib/python3.*
COPY --from=build /opt/trio-odin /opt/trio-odin
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="trio-odin" \
      org.opencontainers.image.description="Filtered WebSocket fan-out of NATS token events" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/trio-odin/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    TRIO_ODIN_REVISION=${REVISION}
USER 65532:65532
EXPOSE 3002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["trio-odin", "ready"]
ENTRYPOINT ["trio-odin"]
CMD ["serve"]
