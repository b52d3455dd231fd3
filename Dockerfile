# syntax=docker/dockerfile:1
# quantkit with llama.cpp compiled for NVIDIA cards.
#
#   docker build -t quantkit .
#   docker build -t quantkit --build-arg CUDA_ARCHITECTURES=86 .    # one card type: compiles faster
#   docker run --rm --gpus all -v /data/models:/models quantkit build --target 4x3090 --model demo

ARG CUDA_VERSION=12.8.1
ARG UBUNTU_VERSION=24.04

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu${UBUNTU_VERSION} AS build

RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential cmake git ninja-build python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/quantkit
WORKDIR /src

# llama.cpp first, and alone: its layer is kept when only quantkit changes.
# GGML_NATIVE=OFF: the image must run on other machines than this one (it needs AVX2).
# --allow-shlib-undefined: libcuda.so.1 belongs to the driver, which comes with the container.
ARG CUDA_ARCHITECTURES=
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    export CMAKE_ARGS="-DGGML_CUDA=on -DGGML_NATIVE=OFF -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined" \
 && if [ -n "${CUDA_ARCHITECTURES}" ]; then \
      export CMAKE_ARGS="${CMAKE_ARGS} -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}"; \
    fi \
 && /opt/quantkit/bin/pip install --no-binary llama-cpp-python -c constraints.txt llama-cpp-python

COPY pyproject.toml README.md LICENSE ./
COPY quantkit quantkit
COPY recipes recipes
COPY calibration calibration
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/quantkit/bin/pip install -c constraints.txt '.[parquet]'

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu${UBUNTU_VERSION} AS run

# libgomp1: ggml's CPU kernels use OpenMP. The base image's own user has the id 1000 that is wanted
# here, because it is the first user's on most machines and must own what is mounted.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
 && rm -rf /var/lib/apt/lists/* \
 && (userdel --remove ubuntu 2>/dev/null || true) \
 && useradd --uid 1000 --create-home quantkit \
 && install -d -o quantkit -g quantkit /models
COPY --from=build /opt/quantkit /opt/quantkit

# Everything that is written goes below /models: downloads, caches, and builds in /models/build.
ENV PATH=/opt/quantkit/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/.cache/huggingface \
    XDG_CACHE_HOME=/models/.cache \
    MPLCONFIGDIR=/models/.cache/matplotlib
USER quantkit
VOLUME /models
WORKDIR /models
ENTRYPOINT ["quantkit"]
CMD ["--help"]
