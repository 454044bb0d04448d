"""The whole pipeline from Python: a log, a data set, a trained model, its report, an exported model, a prediction.

python examples/pipeline.py [DIRECTORY]
"""

import sys
from pathlib import Path

import clsd


def main(directory: Path) -> None:
    """Run every stage in a directory; each stage reads what the one before wrote."""
    log = directory / "log" / "log.jsonl"
    config = clsd.parse_config(
        {
            "name": "example",
            "logs": {
                "dataset": "synthetic",
                "dataset_options": {"rows": 20_000, "users": 500, "items": 200, "ctr": 0.2},
                "files": [str(log)],
            },
            "rows": {
                "label": "click",
                "user": "user_id",
                "timestamp": "timestamp",
                "groups": ["age_band"],
                "features": [{"name": name, "kind": "categorical"} for name in ("user_id", "item_id", "age_band")],
            },
            "train": {"epochs": 2, "batch_size": 1024},
        },
        where="examples/pipeline.py",
    )
    clsd.fetch_logs(config)
    dataset = clsd.preprocess(config, directory / "dataset")
    clsd.train(config, dataset, directory / "train")
    metrics = clsd.evaluate(dataset, directory / "train", directory / "evaluation", overwrite=True)
    print(f"AUC {metrics['score']['auc']:.3f}, report in {directory / 'evaluation' / 'report.html'}")
    version = clsd.export(dataset, directory / "train", directory / "export")
    print(clsd.Predictor(version).predict([{"user_id": "u1", "item_id": "i1", "age_band": "25-34"}]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
