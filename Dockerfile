FROM python:3.13-slim

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
COPY workflows/ workflows/

ENV CHECKOUT_LOG_FILE=/var/lib/checkout/saga.log
USER 10001:10001
CMD ["python", "worker.py"]
