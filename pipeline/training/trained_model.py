"""Build the model of a config, and load the best model of a finished run."""

from __future__ import annotations

from pathlib import Path

from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.features.tf_runtime import register_file_systems, tf
from clsd.models.backbones.registry import BACKBONES
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import InputSpec
from clsd.pipeline.shared.checksums import require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.loaders import restore_checkpoint
from clsd.pipeline.shared.progress import say
from clsd.pipeline.training.checkpoints import BEST, read_run
from clsd.pipeline.training.popularity import item_scores
from clsd.pipeline.training.run_state import warmup_steps


def build_model(config: Config, dataset: Dataset, precision: str = "float32") -> ClsdModel:
    """Build the model of a config for a data set. Call it inside the strategy's scope.

    Only training passes ``train.precision``; evaluation and serving compute in float32. Rounding may depend on the batch in
    training, but a served model must give the scores that were evaluated.

    Raises:
        UserError: ``confidence.source`` needs an item feature with a vocabulary, and there is none.
    """
    if config.model.backbone not in BACKBONES:  # whoever wrote the config, its code runs with this process's rights
        say(f"imports the backbone {config.model.backbone}, as the config names it")
    transform = dataset.transform
    names = [*(f.name for f in config.row_schema.categorical), *(f.name for f in config.row_schema.bucketed)]
    sizes = {name: transform.table_size(name) for name in names}
    spec = InputSpec.build(config.row_schema, sizes, config.model.max_table_rows)
    return ClsdModel(
        spec,
        config.model,
        config.confidence,
        TrainingSetup(
            warmup_steps=warmup_steps(config, dataset),
            embedding_optimizer=config.train.embedding_optimizer,
            dense_optimizer=config.train.dense_optimizer,
            l2=config.train.l2,
            prior_ctr=min(max(dataset.ctr("train"), 1e-6), 1 - 1e-6),
            kept_negatives=dataset.kept_negatives,
            precision=precision,
        ),
        items=item_scores(config, dataset),
    )


def load_trained(directory: str | Path, dataset: Dataset) -> tuple[Config, ClsdModel]:
    """The config and the best model of a finished run, on one device.

    Raises:
        UserError: no finished run there, or one of another data set.
    """
    directory = as_path(directory)
    run = read_run(directory, "run `clsd train` first")
    if run["dataset_fingerprint"] != dataset.manifest["fingerprint"]:
        raise UserError(
            str(directory), f"was not trained on {dataset.directory}", "train again, or name the right --dataset"
        )
    hint = "restore it, or train again with --overwrite"
    require_unchanged(directory, run["files"], hint)
    register_file_systems([directory])
    config = load_config(directory / "config.yaml")
    model = build_model(config, dataset)
    restore_checkpoint(tf.train.Checkpoint(model=model), directory / BEST, hint, whole=True)
    return config, model
