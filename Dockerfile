# Image of the server, the deployments and the workers. The two targets differ in the TensorFlow build and in the work
# pool. The default target is the last one, cpu.
FROM python:3.12-slim AS base
# The user is numeric so that a cluster can verify that it is not root. It owns the folders of volumes but not the code.
RUN useradd --uid 10001 --create-home fashion-ann \
    && mkdir -p /app /artifacts /data /home/fashion-ann/.prefect \
    && chown 10001:10001 /artifacts /data /home/fashion-ann/.prefect
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FASHION_ANN_ARTIFACTS_DIR=/artifacts \
    FASHION_ANN_DATA_DIR=/data \
    # Workers read each other's flow run results from files in this folder.
    PREFECT_HOME=/artifacts/services/prefect \
    PREFECT_WORKER_QUERY_SECONDS=2
# Prefect reads the project's settings and the deployments' entrypoints here; the pull step enters this folder.
WORKDIR /app
COPY requirements/uv.lock requirements/
RUN python -m venv /opt/venv \
    && python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.lock

FROM base AS gpu
# The lock contains CUDA. The host needs NVIDIA's driver and its container toolkit.
COPY requirements/gpu.lock requirements/
RUN uv pip install --python /opt/venv --no-cache --compile-bytecode --require-hashes -r requirements/gpu.lock
COPY . .
RUN uv pip install --python /opt/venv --no-cache --no-deps --no-build-isolation --editable .
USER 10001
ARG REVISION=""
ENV FASHION_ANN_REVISION=$REVISION \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Healthy means that the worker has polled the server recently.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["sh", "-c", "exec prefect worker start --pool ${FASHION_ANN_GPU_POOL:-fashion-ann-gpu} --type process --install-policy never --with-healthcheck"]

FROM base AS cpu
COPY requirements/cpu.lock requirements/
RUN uv pip install --python /opt/venv --no-cache --compile-bytecode --require-hashes -r requirements/cpu.lock
COPY . .
RUN uv pip install --python /opt/venv --no-cache --no-deps --no-build-isolation --editable .
USER 10001
ARG REVISION=""
ENV FASHION_ANN_REVISION=$REVISION
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["sh", "-c", "exec prefect worker start --pool ${FASHION_ANN_CPU_POOL:-fashion-ann-cpu} --type process --install-policy never --with-healthcheck"]
