# A Beam SDK harness with this project in it, for runners that start workers in containers. Untried by the authors: they had no
# container engine.
#   docker build -f docker/worker.Dockerfile -t clsd-worker .
#   clsd preprocess --config C -- --runner=… --environment_type=DOCKER --environment_config=clsd-worker
FROM apache/beam_python3.11_sdk:2.77.0
ENV PIP_NO_CACHE_DIR=1
WORKDIR /opt/clsd
COPY setup.py pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE ./
COPY clsd clsd
COPY features features
COPY models models
COPY pipeline pipeline
RUN pip install --constraint constraints.txt ".[s3]"
# Not as root; Beam would otherwise create an environment of its own under /opt.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 HOME=/tmp
USER 1000:1000
