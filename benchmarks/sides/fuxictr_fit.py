"""FuxiCTR's layers in its own base class, with its reader of .npz files, its loop, and Adam.

Its package has the blocks of DeepFM and DCN-v2 but not the models, which stand in its repository; they are put together here
in its way.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from shared import BATCH, CROSSES, DIM, HIDDEN, Clock, columns, run


class Peer(BaseModel):  # type: ignore[misc]
    """DeepFM or DCN-v2, by ``backbone``."""

    def __init__(self, feature_map: Any, backbone: str, rate: float, clock: Clock, **params: Any) -> None:
        super().__init__(feature_map, **params)
        self._clock = clock
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        width = feature_map.sum_emb_out_dim()
        self.fm = FactorizationMachine(feature_map) if backbone == "deepfm" else None
        self.crossnet = CrossNetV2(width, CROSSES) if backbone == "dcn_v2" else None
        out = 1 if self.fm else None
        self.mlp = MLP_Block(input_dim=width, output_dim=out, hidden_units=list(HIDDEN), hidden_activations="ReLU")
        self.fc = torch.nn.Linear(width + HIDDEN[-1], 1) if self.crossnet else None
        self.compile("adam", "binary_crossentropy", rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: Any) -> Any:
        """The prediction of a batch."""
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        if self.fm:
            logit = self.fm(x, vectors) + self.mlp(vectors.flatten(start_dim=1))
        else:
            flat = vectors.flatten(start_dim=1)
            logit = self.fc(torch.cat([self.crossnet(flat), self.mlp(flat)], dim=-1))
        return {"y_pred": self.output_activation(logit)}

    def train_step(self, batch_data: Any) -> Any:
        """One step, and a tick."""
        loss = super().train_step(batch_data)
        self._clock.tick()
        return loss


def side(backbone: str, data: Any, seed: int, clock: Clock) -> Any:
    """See the module."""
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for split in ("train", "test"):
            np.savez(directory / f"{split}.npz", label=data[f"{split}_label"], **columns(data, split))
        np.savez(
            directory / "valid.npz",
            label=data["test_label"][:BATCH],
            **{name: column[:BATCH] for name, column in columns(data, "test").items()},
        )  # its loop wants one; what it tells is not used
        ids = [
            {f"c{i}": {"source": "", "type": "categorical", "vocab_size": int(size)}}
            for i, size in enumerate(data["sizes"])
        ]
        numbers = [{f"x{i}": {"source": "", "type": "numeric"}} for i in range(data["train_values"].shape[1])]
        described = {"dataset_id": "peers", "labels": ["label"], "features": [*ids, *numbers]}
        (directory / "feature_map.json").write_text(json.dumps(described))
        feature_map = FeatureMap("peers", name)
        feature_map.load(str(directory / "feature_map.json"), {"embedding_dim": DIM})
        params = {"batch_size": BATCH, "num_workers": 1, "data_format": "npz"}
        files = {f"{split}_data": str(directory / f"{split}.npz") for split in ("train", "valid", "test")}
        train, valid = RankDataLoader(feature_map, stage="train", shuffle=True, **files, **params)
        model = Peer(feature_map, backbone, data["rate"], clock, model_root=name, metrics=["AUC"], verbose=0)
        Path(model.model_dir).mkdir(parents=True, exist_ok=True)
        model.fit(train, epochs=1, validation_data=valid)
        return model.predict(RankDataLoader(feature_map, stage="test", **files, **params))


if __name__ == "__main__":
    run(side)
