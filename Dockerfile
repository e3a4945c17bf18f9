# Image of the server, the deployments and the workers. The two targets differ in the TensorFlow build and in the work
# pool. `cpu` comes first, because the classic builder builds every stage above its target.
# Another base image needs `python` with venv, a shell and useradd, as any of Debian has.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS base
# The user is numeric so that a cluster can verify that it is not root. It owns the folders of volumes but not the code.
# A new volume copies its folder, so that Prefect's home exists before the first process uses it.
RUN useradd --uid 10001 --create-home fashion-ann \
    && mkdir -p /app /artifacts/services/prefect /data /datasets /home/fashion-ann/.prefect \
    && chown -R 10001:10001 /artifacts /data /datasets /home/fashion-ann/.prefect
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FASHION_ANN_ARTIFACTS_DIR=/artifacts \
    FASHION_ANN_DATA_DIR=/data \
    FASHION_ANN_DATASETS_DIR=/datasets \
    # Workers read each other's flow run results from files in this folder.
    PREFECT_HOME=/artifacts/services/prefect \
    PREFECT_WORKER_QUERY_SECONDS=2
# Prefect reads the project's settings and the deployments' entrypoints here; the pull step enters this folder.
WORKDIR /app
# Healthy means that the worker has polled the server recently.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]

# uv and pip stay in this stage: no image can install a package.
FROM base AS installer
COPY requirements/uv.lock requirements/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/uv.lock \
    && python -m venv --without-pip /opt/venv

FROM installer AS cpu-packages
COPY requirements/cpu.lock requirements/remote.lock requirements/dask.lock requirements/
COPY pyproject.toml LICENSE deploy/docker/install-packages.sh ./
RUN ./install-packages.sh cpu

FROM base AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY . .
USER 10001
ARG REVISION=""
ENV FASHION_ANN_REVISION=$REVISION
CMD ["sh", "-c", "exec prefect worker start --pool ${FASHION_ANN_CPU_POOL:-fashion-ann-cpu} --type process --install-policy never --with-healthcheck"]

# The lock contains CUDA. The host needs NVIDIA's driver and its container toolkit.
FROM installer AS gpu-packages
COPY requirements/gpu.lock requirements/remote.lock requirements/dask.lock requirements/
COPY pyproject.toml LICENSE deploy/docker/install-packages.sh ./
RUN ./install-packages.sh gpu

FROM base AS gpu
COPY --from=gpu-packages /opt/venv /opt/venv
COPY . .
USER 10001
ARG REVISION=""
ENV FASHION_ANN_REVISION=$REVISION \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["sh", "-c", "exec prefect worker start --pool ${FASHION_ANN_GPU_POOL:-fashion-ann-gpu} --type process --install-policy never --with-healthcheck"]

# Without --target.
FROM cpu
