"""Every artefact, flipped or truncated at seeded places: the reader refuses it in one line, or reads exactly what it read before.

What is mutated is copied first. A mutation flips one bit of a byte, or cuts the file off.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from clsd.features.errors import UserError
from clsd.pipeline.cli import main
from clsd.pipeline.evaluation.evaluate import METRICS_FILE, evaluate, known_headline
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.serving.predict import Predictor
from clsd.pipeline.shared.checksums import require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.json_files import read_json, write_json
from clsd.pipeline.shared.loaders import read_arrays
from clsd.pipeline.shared.model_versions import read_metadata, verified_metadata
from clsd.pipeline.training.checkpoints import BEST, Checkpoints, read_run
from clsd.pipeline.training.train import train
from clsd.pipeline.training.warm_start import load_base_run

#: Flipped bits and truncations per file.
FLIPS, CUTS = 9, 2


class Artefact(NamedTuple):
    """A directory of files, and what its reader makes of it: plain values that can be compared."""

    directory: Path
    read: Callable[[Path], Any]


def _dataset(directory: Path) -> Any:
    dataset = Dataset.load(directory)
    transform = dataset.transform
    tables = {name: vocabulary.table().to_pydict() for name, vocabulary in transform.vocabularies.items()}
    rows = [dataset.read(split) for split in dataset.splits]
    arrays = [np.asarray(array).tolist() for part in rows for array in (part.ids, part.values, part.label)]
    return dataset.manifest, tables, transform.numerics, dataset.statistics, dataset.golden().to_pydict(), arrays


def _run(directory: Path) -> Any:
    run = read_run(directory, "train again")
    require_unchanged(directory, run["files"], "train again")
    return run, load_config(directory / "config.yaml")


def _checkpoint(directory: Path) -> Any:
    newest = Checkpoints(directory).newest()
    assert newest is not None
    return newest[1]


def _version(directory: Path) -> Any:
    return verified_metadata(directory, "copy it again")


def _evaluation(directory: Path) -> Any:
    return read_json(directory / METRICS_FILE, "evaluation", "evaluate again")


def _result(directory: Path) -> Any:
    arrays = read_arrays(directory / "scores.npz", "compare again")
    return read_json(directory / "result.json", "result", "compare again"), {k: v.tolist() for k, v in arrays.items()}


@pytest.fixture(scope="module")
def artefacts(
    small_dataset: Dataset, small_run: Path, small_export: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artefact]:
    root = tmp_path_factory.mktemp("artefacts")
    evaluate(small_dataset, small_run, root / "evaluation")
    steps = sorted((small_run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.copytree(steps[-1], root / "checkpoints" / steps[-1].name)  # one: none is left to fall back on
    run = root / "run"
    shutil.copytree(
        small_run, run, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl", "versions.json", ".lock")
    )
    (root / "result").mkdir()
    write_json(root / "result" / "result.json", {"metrics": {"auc": 0.75}, "epochs": 3})
    np.savez(root / "result" / "scores.npz", logit=np.arange(20.0), label=np.arange(20) % 2)
    return {
        "dataset": Artefact(Path(shutil.copytree(small_dataset.directory, root / "dataset")), _dataset),
        "run": Artefact(run, _run),
        "checkpoint": Artefact(root / "checkpoints", _checkpoint),
        "export": Artefact(
            Path(shutil.copytree(small_export, root / "3")), lambda path: verified_metadata(path, "copy it again")
        ),
        "evaluation": Artefact(root / "evaluation", _evaluation),
        "comparison": Artefact(root / "result", _result),
    }


def _mutations(content: bytes, seed: int) -> list[tuple[str, bytes]]:
    draw = np.random.default_rng(seed)
    result = []
    for _ in range(FLIPS if content else 0):
        at, bit = int(draw.integers(len(content))), int(draw.integers(8))
        result.append((f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]))
    for _ in range(CUTS if content else 0):
        length = int(draw.integers(len(content)))
        result.append((f"cut off after {length} bytes", content[:length]))
    return result


def _refused_in_one_line(artefact: Artefact, file: Path, before: Any) -> bool:
    """Whether the reader refuses the directory; if it does not, it must read what it read before."""
    try:
        after = artefact.read(artefact.directory)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and str(artefact.directory) in text and error.hint, text
        return True
    assert after == before
    return False


#: Files that no reader of their directory uses, with the reason.
_UNUSED = {
    "report.html": "for people; made from metrics.json, and made again by `clsd evaluate`",
    "dead_letters.jsonl.gz": "for people; counted in dataset.json",
    "_SUCCESS": "empty: it marks the end of a copy",
}


@pytest.mark.parametrize("kind", ["dataset", "run", "checkpoint", "export", "evaluation", "comparison"])
def test_a_mutated_artefact_is_refused_or_reads_the_same(kind: str, artefacts: dict[str, Artefact]) -> None:
    artefact = artefacts[kind]
    before, tried, refused = artefact.read(artefact.directory), 0, 0
    files = sorted(path for path in artefact.directory.rglob("*") if path.is_file() and path.name not in _UNUSED)
    assert files
    for seed, file in enumerate(files):
        content = file.read_bytes()
        for what, mutated in _mutations(content, seed):
            file.write_bytes(mutated)
            try:
                refused += _refused_in_one_line(artefact, file, before)
            except BaseException as error:
                raise AssertionError(f"{file}: {what}: {type(error).__name__}: {error}") from error
            tried += 1
        file.write_bytes(content)
    assert artefact.read(artefact.directory) == before
    # What is not refused is a blank between JSON values, or a time in the header of a zip file.
    assert refused >= 0.75 * tried, (refused, tried)


def test_there_are_at_least_300_mutations(artefacts: dict[str, Artefact]) -> None:
    files = [
        path for a in artefacts.values() for path in a.directory.rglob("*") if path.is_file() and path.stat().st_size
    ]
    assert (FLIPS + CUTS) * len([path for path in files if path.name not in _UNUSED]) >= 300


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_flipped_bit_in_a_vocabulary_ends_the_commands(
    command: str, artefacts: dict[str, Artefact], small_run: Path, tmp_path: Path
) -> None:
    vocabulary = artefacts["dataset"].directory / "vocabularies" / "item_id.parquet"
    content = vocabulary.read_bytes()
    vocabulary.write_bytes(bytes([*content[:40], content[40] ^ 1, *content[41:]]))
    arguments = ["--config", small_run / "config.yaml", "--dataset", vocabulary.parents[1], "--run", small_run]
    done = CliRunner().invoke(main, [command, *map(str, arguments), "--out", str(tmp_path / "out")])
    vocabulary.write_bytes(content)
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        f"error: {vocabulary}: is not the file that clsd wrote: its checksum differs; "
        "restore it, or run `clsd preprocess` again with --overwrite"
    ]
    assert not any((tmp_path / "out").glob("*/saved_model.pb"))


@pytest.mark.parametrize("file", ["assets/item_id.txt", "variables/variables.index", "saved_model.pb"])
def test_an_altered_version_is_not_loaded(file: str, small_export: Path, tmp_path: Path) -> None:
    version = Path(shutil.copytree(small_export, tmp_path / "3"))
    lines = (version / file).read_bytes()
    (version / file).write_bytes(lines[:-2] + bytes([lines[-2] ^ 1]) + lines[-1:])
    for use in (Predictor, load_base_run):
        with pytest.raises(UserError, match=rf"{file}: is not the file that clsd wrote: its checksum differs"):
            use(version)
    done = CliRunner().invoke(main, ["inspect", str(version)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and file in done.stderr
    (version / file).unlink()
    with pytest.raises(UserError, match=rf"{file}: is missing; copy it again|holds no exported model"):
        Predictor(version)


def test_inspect_verifies_a_run_and_a_version(small_run: Path, small_export: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(small_run)])
    assert done.exit_code == 0 and f"{1 + len(list((small_run / BEST).parent.iterdir()))} files verified" in done.stderr
    done = CliRunner().invoke(main, ["inspect", str(small_export.parent)])
    count = len(read_metadata(small_export, "")["files"])
    assert done.exit_code == 0, done.stderr
    assert f"{count} files verified; golden scores differ by at most " in done.stderr


def test_another_shard_of_the_same_length_is_refused(artefacts: dict[str, Artefact], tmp_path: Path) -> None:
    """Its records are whole, so their checksums hold."""
    directory = Path(shutil.copytree(artefacts["dataset"].directory, tmp_path / "dataset"))
    first, second = (next((directory / split).glob("*.tfrecord")) for split in ("validation", "test"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    manifest = read_json(directory / "dataset.json", "data set", "")
    for split in ("validation", "test"):  # features of one value give shards of equal lengths
        (shard,) = manifest["splits"][split]["shards"]
        shard["bytes"] = (directory / shard["file"]).stat().st_size
    write_json(directory / "dataset.json", manifest)
    dataset = Dataset.load(directory)
    for use in (lambda: dataset.files("test"), lambda: dataset.read("validation")):
        with pytest.raises(UserError, match="is another shard than the one that preprocessing wrote; restore it"):
            use()
    assert dataset.files("train")


def test_finished_results_are_not_reused_when_a_part_is_gone(
    small_config: Config, small_dataset: Dataset, small_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    (run / f"{BEST}.index").unlink()
    with pytest.raises(UserError, match=r"weights\.index: is missing; restore it, or pass --overwrite to start anew"):
        train(small_config, small_dataset, run)
    evaluate(small_dataset, small_run, tmp_path / "evaluation")
    (tmp_path / "evaluation" / "report.html").write_text("")
    with pytest.raises(UserError, match=r"report\.html: is not the file that clsd wrote"):
        evaluate(small_dataset, small_run, tmp_path / "evaluation")
    (tmp_path / "evaluation" / METRICS_FILE).write_text("")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read .*; evaluate again with --overwrite"):
        evaluate(small_dataset, small_run, tmp_path / "evaluation")
    assert known_headline(tmp_path / "evaluation", small_run) is None
    assert evaluate(small_dataset, small_run, tmp_path / "evaluation", overwrite=True)["score"]["auc"] > 0.5
    assert known_headline(tmp_path / "evaluation", small_run)
    directory = Path(shutil.copytree(small_dataset.directory, tmp_path / "dataset"))
    (directory / "statistics.json").write_text("{}" + " " * ((directory / "statistics.json").stat().st_size - 2))
    with pytest.raises(UserError, match=r"statistics\.json: is not the file that clsd wrote"):
        preprocess(small_config, directory)


def test_best_weights_that_were_damaged_before_the_end_are_not_sealed(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_config(train={"epochs": 2})
    train(config, small_dataset, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()  # as if it was killed just before
    weights = next((tmp_path / "run" / "best").glob("weights.data*"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=r"weights\.data.*: is not the file that clsd wrote.*pass --overwrite"):
        train(config, small_dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    weights.write_bytes(content)
    assert train(config, small_dataset, tmp_path / "run")["best_epoch"]


def test_an_unknown_or_misspelt_key_is_named(artefacts: dict[str, Artefact], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(artefacts["dataset"].directory, tmp_path / "dataset"))
    manifest = read_json(directory / "dataset.json", "data set", "")
    manifest["vocabulary"] = manifest.pop("vocabularies")
    write_json(directory / "dataset.json", manifest)
    with pytest.raises(UserError, match=r"dataset.json: vocabularies: is missing"):
        Dataset.load(directory)
    write_json(directory / "dataset.json", {**manifest, "vocabularies": manifest["vocabulary"]})
    with pytest.raises(UserError, match=r"dataset.json: vocabulary: unknown key; did you mean 'vocabularies'\?"):
        Dataset.load(directory)
    run = Path(shutil.copytree(artefacts["run"].directory, tmp_path / "run"))
    write_json(run / "run.json", {**read_run(run, ""), "best_epochs": 3})
    with pytest.raises(UserError, match=r"run.json: best_epochs: unknown key; did you mean 'best_epoch'\?"):
        read_run(run, "")


def test_a_file_of_an_earlier_version_says_so(artefacts: dict[str, Artefact], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"auc": 1.0}')
    with pytest.raises(
        UserError, match="has no checksum: an earlier version of clsd wrote it, or it was edited; go on"
    ):
        read_json(tmp_path / "metrics.json", "evaluation", "go on")
    (tmp_path / "metrics.json").write_text('{"auc": 1.0, "auc": 1.0}')
    with pytest.raises(UserError, match=r"cannot be read .a key stands twice"):
        read_json(tmp_path / "metrics.json", "evaluation", "go on")
