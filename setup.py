"""Packaging of clsd; constraints.txt has the exact versions that are tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ROOMS = ("features", "models", "pipeline")
VERSION = re.search(r"^## (\d+\.\d+\.\d+)", (HERE / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE).group(1)

setup(
    name="clsd",
    version=VERSION,
    description="Click logs in, a served, confidence-weighted CTR model out",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    # The folders are at the top level; they are installed and imported as clsd.features, clsd.models and clsd.pipeline.
    packages=["clsd", *(f"clsd.{found}" for found in find_packages(include=[f"{room}*" for room in ROOMS]))],
    package_dir={"clsd": "clsd", **{f"clsd.{room}": room for room in ROOMS}},
    package_data={"clsd": ["py.typed"], "clsd.pipeline.evaluation": ["templates/*.html"]},
    install_requires=[
        # tensorflow-io's native library loads on TF 2.16 and 2.17 only, and its readers crash on 2.17.
        "tensorflow>=2.16.2,<2.17",
        "tf-keras>=2.16.0,<2.17",
        "tensorflow-recommenders>=0.7.7,<0.8",
        "tensorflow-io>=0.37.1,<0.38",
        "tensorflow-io-gcs-filesystem>=0.37.1,<0.38",
        "tensorflow-serving-api>=2.16.1,<2.17",  # the messages of the warm-up file
        "apache-beam>=2.77.0,<2.78",
        "grpcio>=1.80,<2",  # required by apache-beam
        "psutil>=7,<8",
        "google-crc32c>=1.9,<2",
        "fastavro>=1.12,<2",
        "pyarrow>=25.0.1,<26",
        "numpy>=1.26.4,<2",
        "protobuf>=4.25.9,<5",
        "scipy>=1.15,<2",
        "pydantic>=2.14,<3",
        "PyYAML>=6.0.3,<7",
        "click>=8.5,<9",
        "rich>=15.0,<16",
        "jinja2>=3.1.6,<4",
        "matplotlib>=3.10,<4",
    ],
    extras_require={
        # CUDA libraries as TensorFlow 2.16 wants them.
        "gpu": ["tensorflow[and-cuda]>=2.16.2,<2.17"],
        # Logs, data sets, runs and models in s3://; for gs:// install gcsfs.
        "s3": ["universal-pathlib>=0.3.10,<0.4", "s3fs>=2026.9"],
        "dev": [
            "universal-pathlib>=0.3.10,<0.4",
            "s3fs>=2026.9",
            "moto[s3]>=5.2.5,<6",  # the S3-compatible server of the tests
            "flask>=3.1,<4",
            "flask-cors>=6,<7",
            "pytest>=9.2,<10",
            "pytest-xdist>=3.8,<4",
            "pytest-cov>=7.1,<8",
            "hypothesis>=6.170,<7",  # property tests of readers, encoders and the serving graph
            "ruff>=0.17.6,<0.18",
            "import-linter>=2.17,<3",  # what may import what
            "pre-commit>=4.7,<5",
            "build>=1.6,<2",
            # Documentation: pages, the API's reference, and the notebook that the tests run.
            "mkdocs-material>=9.8,<10",
            "mkdocstrings[python]>=1.0,<2",
            "nbclient>=0.11,<1",
            "nbformat>=5.11,<6",
            "ipykernel>=7.4,<8",
            "mypy>=2.4.1,<3",
            "types-PyYAML>=6.0.12",
            "scikit-learn>=1.7,<2",
        ],
    },
    entry_points={"console_scripts": ["clsd = clsd.pipeline.cli:main"]},
)
