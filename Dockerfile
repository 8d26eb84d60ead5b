# The service as an image:      docker build -t openmeter-stripe .
# Its commands in the same one: docker run --rm --env-file .env openmeter-stripe flask report

# Any image with Python 3.11 or newer, its venv module and root's certificates does
ARG BASE=python:3.13-slim

FROM $BASE AS packages
# pip stays in a place of its own, so that the image has none
RUN python3 -m venv /pip && python3 -m venv --without-pip /srv/openmeter-stripe/.venv
COPY requirements-run.lock /
RUN /pip/bin/pip --python /srv/openmeter-stripe/.venv/bin/python install \
    --no-cache-dir --require-hashes --only-binary :all: -r /requirements-run.lock

FROM $BASE
WORKDIR /srv/openmeter-stripe
COPY --from=packages /srv/openmeter-stripe/.venv .venv
COPY app.py usage.py gunicorn.conf.py ./
COPY audit audit
COPY billing billing
COPY doctor doctor
COPY service service
# A port above 1023 needs no rights; all files are root's, and only /tmp is written to
USER 10001:10001
ENV PATH=/srv/openmeter-stripe/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
EXPOSE 4242
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\") or 4242}/healthz', timeout=4)"]
CMD ["python", "-m", "service"]
