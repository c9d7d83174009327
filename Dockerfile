# The digest is of the tag's index, for every platform. `docker buildx imagetools inspect TAG` tells the newest.
FROM python:3.13.15-slim-trixie@sha256:8d9d0b8bcf6506481eae4907c18f5e3e7902e629f5f6d684f9e7c32e85e3ddf0

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# Its own uid, the same in every build: volumes outlive containers.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin checkout \
    && install --directory --owner=checkout --group=checkout /var/lib/checkout

WORKDIR /app

# Before the code, so that a change of the code does not install anything again.
COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --no-deps --require-hashes -r requirements.lock

COPY worker.py starter.py ./
COPY activities/ activities/
COPY adapters/ adapters/
COPY client/ client/
COPY domain/ domain/
COPY terminal/ terminal/
COPY workflows/ workflows/

ENV CHECKOUT_LOG_FILE=/var/lib/checkout/saga.log \
    CHECKOUT_HEARTBEAT_FILE=/tmp/checkout.heartbeat
USER 10001:10001
CMD ["python", "worker.py"]
