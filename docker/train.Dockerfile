# Preprocessing, training and export in one image. Untried by the authors: they had no container engine.
#   docker build -f docker/train.Dockerfile -t clsd .                      CPU
#   docker build -f docker/train.Dockerfile --build-arg EXTRAS=s3,gpu -t clsd:gpu .   then docker run --gpus all …
FROM python:3.11-slim
ARG EXTRAS="s3"
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/clsd
COPY setup.py pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE ./
COPY clsd clsd
COPY features features
COPY models models
COPY pipeline pipeline
RUN pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
# Not as root: give this user the directories that are mounted, or run with --user.
RUN useradd --uid 1000 --create-home clsd && install --directory --owner 1000 --group 1000 /work
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["clsd"]
