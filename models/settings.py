"""Settings of the method, the backbone and the optimizers."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clsd.features.schema import Strict

#: What each preset changes in the defaults. A key that the user sets overrides the preset.
PRESETS: dict[str, dict[str, Any]] = {
    "stable": {},
    "paper": {"teacher": "self", "normalise": "none", "blend": math.inf, "gate": "centre"},
    "two-level": {"source": "item", "teacher": "ema", "blend": 3.0, "soften": 0.3, "gate": "off"},
    "plain": {"teacher": "none", "gate": "off", "warmup_epochs": 0.0},
}


class ConfidenceSettings(Strict):
    """Every switch of the method.

    With q the teacher's score and g the gate's correction, the weight of a click is
    ``w = (1 + blend * a / c) / (1 + blend)``, where ``a = clip(q**alpha + g, eps * c, a_max * c)``. See docs/method.md.
    """

    preset: Literal["stable", "paper", "two-level", "plain"] = Field(
        default="stable",
        description="stable: the defaults; paper: a literal reading of the paper; two-level: weights by item, teacher's score in "
        "the targets; plain: no weighting",
    )
    teacher: Literal["frozen", "ema", "previous", "self", "none"] = Field(
        default="frozen",
        description="the network whose score is q: frozen: the model at the end of warm-up; ema: the model's moving "
        "average; previous: the model one step ago; self: the same forward pass; none: no weighting",
    )
    source: Literal["teacher", "item", "popularity", "intensity"] = Field(
        default="teacher",
        description="basis of the weights: the teacher's score, or the odds of a click on the item in training; as controls: "
        "the item's share of training clicks, or the click's own intensity",
    )
    scale: Literal["probability", "odds"] = Field(
        default="probability",
        description="probability: q; odds: q / (1 - q); normalised weights from odds do not depend on the share of "
        "non-clicks in the training data",
    )
    refresh_steps: int = Field(
        default=0, ge=0, le=2**31 - 1, description="frozen: steps between copies of the model; 0: never copied again"
    )
    ema_decay: float = Field(
        default=0.999, gt=0, lt=1, description="ema: share of the old teacher that each step keeps"
    )
    normalise: Literal["mean", "gradient_mass", "none"] = Field(
        default="mean",
        description="normaliser c: mean: the mean confidence of clicks; gradient_mass: the c that keeps the mean "
        "prediction equal to the CTR; none: 1",
    )
    mean_decay: float = Field(
        default=0.99, ge=0, lt=1, description="decay of the moving averages that c is computed from"
    )
    blend: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=True,
        description="lambda: 0 gives every click the weight 1, .inf weights by confidence alone",
    )
    soften: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the teacher's score in the target, for clicks and non-clicks",
    )
    alpha: float = Field(default=1.0, gt=0, description="exponent of the teacher's score")
    eps: float = Field(default=0.02, gt=0, description="least confidence, in units of c")
    a_max: float = Field(default=5.0, gt=0, description="largest confidence, in units of c")
    control: Literal["none", "constant", "permuted", "rce", "tce"] = Field(
        default="none",
        description="for comparisons: constant: every click gets the mean weight; permuted: the weights, permuted "
        "among the clicks; rce, tce: R-CE, T-CE",
    )
    rce_exponent: float = Field(
        default=0.25, gt=0, description="R-CE: exponent b of the weights p**b of clicks and (1 - p)**b of non-clicks"
    )
    tce_share: float = Field(
        default=0.1, ge=0, lt=1, description="T-CE: share of clicks that are dropped, those with the largest loss"
    )
    tce_ramp_steps: int = Field(
        default=1000, ge=0, le=2**31 - 1, description="T-CE: steps over which the share rises from 0"
    )
    # YAML reads a bare off as false.
    gate: Annotated[Literal["centre", "calibration", "off"], BeforeValidator(lambda v: "off" if v is False else v)] = (
        Field(
            default="centre",
            description="aim of AdGate: centre: the same mean confidence in every group; calibration: a calibrated score "
            "in every group; off: no AdGate",
        )
    )
    gate_units: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        default=[16], description="widths of AdGate's hidden layers"
    )
    gate_embedding_dim: int = Field(
        default=4, ge=1, le=4096, description="length of AdGate's embedding of each group feature"
    )
    gate_learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of AdGate's own optimizer, Adam")
    warmup_epochs: float = Field(default=1.0, ge=0, description="epochs of plain loss before weighting")
    warmup_steps: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="the same in steps; overrides warmup_epochs"
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        if isinstance(given, dict):
            preset = given.get("preset", "stable")
            if preset in PRESETS:
                return {**PRESETS[preset], **given}
        return given

    @model_validator(mode="after")
    def _bounds_fit(self) -> ConfidenceSettings:
        if self.eps >= self.a_max:
            raise ValueError(f"eps ({self.eps}) must be below a_max ({self.a_max})")
        if self.control != "none" and not self.weighted:
            raise ValueError("control needs weights to replace; set a teacher, or control: none")
        if self.scale == "odds" and self.gate == "calibration":
            raise ValueError("gate: calibration compares probabilities; set scale: probability, or gate: centre")
        return self

    @property
    def weighted(self) -> bool:
        """Whether clicks are weighted at all."""
        return self.teacher != "none"

    @property
    def counts_items(self) -> bool:
        """Whether the weights come from counts of items in the training split."""
        return self.weighted and self.source in ("item", "popularity")

    @property
    def separate_teacher(self) -> bool:
        """Whether a second network is kept: a teacher that is not the student, and whose scores are used."""
        asked = self.source == "teacher" or self.soften > 0
        return asked and self.control not in ("rce", "tce") and self.teacher in ("frozen", "ema", "previous")

    @property
    def uninformative(self) -> bool:
        """Whether training weights say nothing about a scored row; the best guess is then their mean."""
        return self.weighted and (self.control in ("constant", "permuted") or self.source == "intensity")


class OptimizerSettings(Strict):
    """An optimizer. For embedding tables choose any but adam: the others update only the rows of the batch."""

    name: Literal["adam", "adagrad", "sgd", "lazy_adam", "rowwise_adagrad"] = Field(
        default="adam",
        description="kind of optimizer; lazy_adam updates only the moments of the batch's rows, rowwise_adagrad keeps one number "
        "per row",
    )
    learning_rate: float = Field(
        gt=0, description="learning rate; the default optimizers have 0.05 (tables, adagrad) and 0.001 (the rest, adam)"
    )


class TableOptimizerSettings(OptimizerSettings):
    """The optimizer of embedding tables."""

    name: Literal["adam", "adagrad", "sgd", "lazy_adam", "rowwise_adagrad"] = Field(
        default="adagrad", description=OptimizerSettings.model_fields["name"].description
    )


class ModelSettings(Strict):
    """The backbone and its options."""

    backbone: str = Field(
        default="deepfm",
        description="deepfm, dcn_v2, wide_deep, fibinet, autoint, dlrm, din, or the dotted path of your own Keras model, "
        "package.module:Class",
    )
    embedding_dim: int = Field(default=16, ge=1, le=65_536, description="length of every embedding vector")
    max_table_rows: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="largest number of rows of an embedding table; a table with more ids is composed of two, one of "
        "this many rows and one of ids / this many rows; 0: no limit",
    )
    options: dict[str, Any] = Field(default={}, description="other arguments of the backbone, such as hidden_units")
