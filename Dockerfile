# syntax=docker/dockerfile:1
# Two targets. `gpu`, the default: torch's wheels bring their CUDA libraries, the host needs only the driver and the NVIDIA
# container toolkit. `cpu`: the same without CUDA, a few GB smaller. How to run both: docs/docker.md
#   docker build --build-arg CDMEM_COMMIT="$(git rev-parse HEAD)" -t cdmem .
#   docker build --target cpu -t cdmem:cpu .
ARG PYTHON_VERSION=3.12
# The user inside. Any other works too (`docker run --user`): the volumes are open to all, as /tmp is.
ARG UID=1000
ARG GID=1000
# The commit of the build context; .git stays outside, so the image cannot find it out. Goes into every environment.json.
ARG CDMEM_COMMIT=unknown

FROM python:${PYTHON_VERSION}-slim-bookworm AS base
ARG UID
ARG GID
LABEL org.opencontainers.image.title="cdmem" \
      org.opencontainers.image.description="Does consistency distillation carry memorised training images over to the student?" \
      org.opencontainers.image.licenses="Apache-2.0"
# HOME and USER are set for users that the image does not know: without them getpass and ~ fail.
ENV HOME=/cache/home \
    USER=cdmem \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    MPLCONFIGDIR=/cache/matplotlib \
    WANDB_DIR=/cache/wandb \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
# The configs name data/... and runs/...: relative to /app these are the volumes.
RUN groupadd --non-unique --gid "${GID}" cdmem \
    && useradd --non-unique --uid "${UID}" --gid "${GID}" --no-create-home --home-dir /cache/home cdmem \
    && install --directory --mode=1777 /data /runs /cache /cache/home /cache/wandb \
    && ln -s /data /runs /app/
VOLUME ["/data", "/runs", "/cache"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["--help"]
# Dependencies before source: an edit of the source installs nothing anew. .ci/highest.txt holds the versions tested last.
COPY pyproject.toml .ci/highest.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['efficientnet']))" > requirements.txt

FROM base AS dependencies-gpu
# The mount is pip's cache (XDG_CACHE_HOME), so the layer keeps none of it; the linter knows root's own only.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/cache/pip \
    pip install --requirement requirements.txt --constraint highest.txt

FROM base AS dependencies-cpu
# Wheels without CUDA. Another mirror: --build-arg CPU_INDEX=URL
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
# The mount is pip's cache (XDG_CACHE_HOME), so the layer keeps none of it; the linter knows root's own only.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/cache/pip \
    pip install --extra-index-url "${CPU_INDEX}" --requirement requirements.txt --constraint highest.txt

FROM scratch AS source
COPY README.md LICENSE CITATION.cff pyproject.toml /app/
COPY configs /app/configs
COPY callbacks /app/callbacks
COPY cdmem /app/cdmem
COPY --chmod=755 docker/entrypoint.sh /app/docker/entrypoint.sh

FROM dependencies-cpu AS cpu
ARG UID
ARG GID
ARG CDMEM_COMMIT
COPY --from=source /app /app
RUN pip install --no-cache-dir --no-deps --editable . \
    && python -m compileall -q cdmem callbacks
ENV CDMEM_COMMIT=${CDMEM_COMMIT}
LABEL org.opencontainers.image.revision=${CDMEM_COMMIT}
USER ${UID}:${GID}

FROM dependencies-gpu AS gpu
ARG UID
ARG GID
ARG CDMEM_COMMIT
COPY --from=source /app /app
RUN pip install --no-cache-dir --no-deps --editable . \
    && python -m compileall -q cdmem callbacks
ENV CDMEM_COMMIT=${CDMEM_COMMIT}
LABEL org.opencontainers.image.revision=${CDMEM_COMMIT}
USER ${UID}:${GID}
