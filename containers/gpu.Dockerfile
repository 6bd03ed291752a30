# The image of training. Build from the repository's root, after `make wheel`:
#   docker build -f containers/gpu.Dockerfile --build-arg BASE_DIGEST=sha256:... .
ARG BASE_DIGEST
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime@${BASE_DIGEST}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    HOME=/tmp

COPY containers/gpu.lock /opt/locks/gpu.lock
RUN pip install --no-cache-dir --no-deps --only-binary :all: --requirement /opt/locks/gpu.lock

# Last, because it is what changes: a new version of the code reuses every layer above.
COPY dist/conversion_retrieval-*.whl /opt/wheels/
RUN pip install --no-cache-dir --no-deps /opt/wheels/*.whl \
    && _KFP_RUNTIME=true python -c "import conversion_retrieval.training.worker, torch, kfp.dsl; assert torch.__version__.startswith('2.13.0'), torch.__version__"

USER 10001:10001
WORKDIR /tmp
