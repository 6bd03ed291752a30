# The image of the CPU stages and of serving. Build from the repository's root, after `make wheel`:
#   docker build -f containers/cpu.Dockerfile --build-arg BASE_DIGEST=sha256:... .
ARG BASE_DIGEST
FROM python:3.11-slim-bookworm@${BASE_DIGEST}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp

# torch's CPU build lives on an index of its own; empty takes the default index.
ARG TORCH_INDEX_URL=""
COPY containers/cpu.lock /opt/locks/cpu.lock
RUN pip install --no-cache-dir --no-deps --only-binary :all: ${TORCH_INDEX_URL:+--index-url ${TORCH_INDEX_URL}} "$(grep '^torch==' /opt/locks/cpu.lock)" \
    && pip install --no-cache-dir --no-deps --only-binary :all: --requirement /opt/locks/cpu.lock

# Last, because it is what changes: a new version of the code reuses every layer above.
COPY dist/conversion_retrieval-*.whl /opt/wheels/
RUN pip install --no-cache-dir --no-deps /opt/wheels/*.whl \
    && _KFP_RUNTIME=true python -c "import conversion_retrieval.serving, conversion_retrieval.features.build, faiss, torch, great_expectations, kfp.dsl" \
    && conversion-retrieval --help

USER 10001:10001
WORKDIR /tmp
