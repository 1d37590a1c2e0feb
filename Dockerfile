# The service in a container, as a user without rights. Build, then run with a bundle and a file of keys:
#   docker build -t sonobreast .
#   docker run --read-only --cap-drop ALL --memory 2g -p 8000:8000 \
#       -v /path/to/bundle:/bundle:ro -v /path/to/keys:/keys:ro sonobreast
# Put a proxy with TLS before it, or give --tls-certificate and --tls-key.
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir ".[serve,dicom]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sonobreast
COPY --from=build /venv /venv
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s CMD ["/venv/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/ready', timeout=4)"]
ENTRYPOINT ["/venv/bin/sonobreast", "serve", "/bundle", "--host", "0.0.0.0", "--keys", "/keys"]
