FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY trio_odin trio_odin
RUN python -m venv /opt/trio-odin && /opt/trio-odin/bin/pip install --no-cache-dir ".[auth]"

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="trio-odin" \
      org.opencontainers.image.description="Filtered WebSocket fan-out of NATS token events" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/trio-odin /opt/trio-odin
ENV PATH=/opt/trio-odin/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 3002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:3002/ready', timeout=2)"]
ENTRYPOINT ["trio-odin"]
CMD ["serve"]
