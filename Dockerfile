# One image for the server, the deployments and a worker. Its two targets differ in TensorFlow and in the pool that
# their worker serves; without --target the last one is built, cpu.
FROM python:3.12-slim AS base
# By number, so that a cluster which forbids root can see that this is none. It owns what it writes to, and no code.
RUN useradd --uid 10001 --create-home fashion-ann \
    && mkdir -p /app /artifacts /data \
    && chown 10001:10001 /artifacts /data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FASHION_ANN_ARTIFACTS_DIR=/artifacts \
    FASHION_ANN_DATA_DIR=/data \
    # Results of flow runs are handed from one worker to another through files.
    PREFECT_HOME=/artifacts/services/prefect \
    PREFECT_WORKER_QUERY_SECONDS=2
# Where Prefect finds the project's settings, the entrypoints of the deployments, and the pull step the checkout.
WORKDIR /app
COPY requirements/uv.lock requirements/
RUN python -m venv /opt/venv \
    && python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.lock

FROM base AS gpu
# CUDA comes with the lock; of the host only NVIDIA's driver is needed, which its container toolkit hands in.
COPY requirements/gpu.lock requirements/
RUN uv pip install --python /opt/venv --no-cache --compile-bytecode --require-hashes -r requirements/gpu.lock
COPY . .
RUN uv pip install --python /opt/venv --no-cache --no-deps --no-build-isolation --editable .
USER 10001
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Healthy: the worker has lately asked the server for work.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--install-policy", "never", "--with-healthcheck"]

FROM base AS cpu
COPY requirements/cpu.lock requirements/
RUN uv pip install --python /opt/venv --no-cache --compile-bytecode --require-hashes -r requirements/cpu.lock
COPY . .
RUN uv pip install --python /opt/venv --no-cache --no-deps --no-build-isolation --editable .
USER 10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--install-policy", "never", "--with-healthcheck"]
