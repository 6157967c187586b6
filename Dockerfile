# Images of the pipeline's stages; docs/images.md says what each holds, its size, and what the arguments mean.
#
#   base      compare-policies, compare-and-register, aggregate, report-status: Kubeflow, MLflow and S3, no torch
#   train     preflight, sft-warmup, rest-rl
#   evaluate  prepare-data, the evaluations
#
# Packages go in first, those that more images share before those that fewer do, so that images have layers in common;
# the project goes in last, so that a change of its code installs nothing again. `make image` builds all three.
# Nothing here needs BuildKit: Docker engines without buildx, Podman and Kaniko build it as well.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS python
# Any user may run the images: Kubernetes gives a pod the user and the group that its security context names, OpenShift an
# unknown user in group 0. So the home folder is everybody's, as /tmp is, and names that programs look up in /etc/passwd
# come from USER. A run on one machine mounts folders where they lie there, which may be below /root: let users pass.
ENV HOME=/home/rest \
    USER=rest \
    LOGNAME=rest \
    XDG_CACHE_HOME=/home/rest/.cache \
    HF_HOME=/home/rest/.cache/huggingface \
    TRITON_CACHE_DIR=/home/rest/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/rest/.cache/torchinductor \
    MPLCONFIGDIR=/home/rest/.cache/matplotlib \
    PYTHONUNBUFFERED=1
# The environment has no pip: what an image holds is what was locked.
RUN python3 -m venv --without-pip /opt/venv \
    && mkdir -p /home/rest/.cache \
    && chmod 1777 /home/rest /home/rest/.cache \
    && chmod 711 /root
ENV PATH=/opt/venv/bin:$PATH
LABEL org.opencontainers.image.title="ResT pipelines" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /home/rest
CMD ["rest", "--help"]

FROM python AS project
ARG PIP_INDEX_URL
COPY requirements/build.txt /requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r /requirements/build.txt
COPY . /src
RUN /opt/build/bin/python -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels /src \
    && pip --python /opt/venv/bin/python install --no-deps --no-index --prefix /opt/project /wheels/*.whl

FROM python AS base-packages
ARG PIP_INDEX_URL
COPY requirements/base.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements/base.txt

FROM base-packages AS models-packages
ARG PIP_INDEX_URL
# What torch computes on: cpu or cuda. Which build of it comes is the index's choice, so look at what came.
ARG ACCELERATOR=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
LABEL rest-pipelines.accelerator="${ACCELERATOR}"
COPY requirements/torch.txt requirements/models.txt requirements/cuda.txt /requirements/
RUN case "$ACCELERATOR" in \
        cpu) set -- --extra-index-url "$TORCH_CPU_INDEX" ;; \
        cuda) set -- ;; \
        *) echo "ACCELERATOR=$ACCELERATOR: it is cpu or cuda" >&2; exit 1 ;; \
    esac \
    && install() { pip --python /opt/venv/bin/python install --no-cache-dir --no-deps "$@"; } \
    && install -r /requirements/torch.txt "$@" \
    && if [ "$ACCELERATOR" = cuda ]; then install --require-hashes -r /requirements/cuda.txt; fi \
    && install --require-hashes -r /requirements/models.txt \
    && python3 -c "import torch; made = 'cuda' if torch.version.cuda else 'cpu'; \
assert made == '$ACCELERATOR', f'torch {torch.__version__} is a build for {made}, not for $ACCELERATOR'"

FROM models-packages AS train-packages
ARG PIP_INDEX_URL
ARG ACCELERATOR=cpu
# Triton compiles with a C compiler what launches a kernel: without one there is no FlexAttention, which trees need.
RUN if [ "$ACCELERATOR" = cuda ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements/train.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements/train.txt

FROM models-packages AS evaluate-packages
ARG PIP_INDEX_URL
COPY requirements/evaluate.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes -r /requirements/evaluate.txt

# The commit comes last: it changes more often than anything else.
FROM base-packages AS base
COPY --from=project /opt/project/ /opt/venv/
USER 1000:0
ARG VERSION=unknown
ARG GIT_COMMIT=unknown
ENV REST_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${GIT_COMMIT}"

FROM train-packages AS train
COPY --from=project /opt/project/ /opt/venv/
USER 1000:0
ARG VERSION=unknown
ARG GIT_COMMIT=unknown
ENV REST_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${GIT_COMMIT}"

FROM evaluate-packages AS evaluate
COPY --from=project /opt/project/ /opt/venv/
USER 1000:0
ARG VERSION=unknown
ARG GIT_COMMIT=unknown
ENV REST_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${GIT_COMMIT}"
