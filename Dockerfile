# Build: everything from the locked versions and hashes, with the compiler that hnswlib and Hone's own kernels need.
FROM python:3.12-slim AS build

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# hnswlib is compiled for the processor of the building machine. Set to 1 when the image will run on others: portable, slower.
ARG HNSWLIB_NO_NATIVE=

WORKDIR /src
RUN python -m venv /opt/hone
COPY requirements.lock ./
RUN /opt/hone/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

COPY pyproject.toml setup.py README.md LICENSE ./
COPY bandit bandit
COPY retrieval retrieval
COPY service service
COPY simulators simulators
RUN /opt/hone/bin/pip install --no-cache-dir --no-deps .


FROM python:3.12-slim

# libgomp1: implicit's compiled code links to the system's OpenMP.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin hone \
    && install --directory --owner hone --group hone --mode 0700 /data

COPY --from=build /opt/hone /opt/hone

ENV PATH=/opt/hone/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HONE_DATA_DIR=/data \
    HONE_CACHE_DIR=/data/cache

# By number, so that a platform can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080

# Without proxies: the environment may name one, and it does not know this address.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('HONE_PORT', '8080') + '/healthz', timeout=2)"]

ENTRYPOINT ["hone"]
CMD ["--help"]
