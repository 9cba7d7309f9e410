# One image for the workers and the collector (no torch), one for training. Build: docker build --target workers .
# .dockerignore says what is copied.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CLICKWAKE_HOME=/var/lib/clickwake
# memory that was needed once goes back to the system, see clickwake/local/up.py
ENV MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=1048576 MALLOC_TRIM_THRESHOLD_=1048576
# a named volume takes its owner from the folder it is first mounted on
RUN groupadd --system --gid 10001 clickwake \
 && useradd --system --uid 10001 --gid clickwake --home-dir /var/lib/clickwake --create-home clickwake \
 && install --directory --owner clickwake --group clickwake /models
WORKDIR /app

FROM base AS workers
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps .
USER clickwake
VOLUME /var/lib/clickwake
CMD ["clickwake", "--help"]

FROM base AS training
COPY requirements-train.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements-train.lock
COPY . .
RUN pip install --no-cache-dir --no-deps .
USER clickwake
VOLUME /var/lib/clickwake
CMD ["python", "-m", "training.schedule", "--every", "6h"]
