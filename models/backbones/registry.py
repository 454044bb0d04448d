"""The backbones by name; or by the dotted path of a user's own Keras model."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError, did_you_mean
from clsd.features.tf_runtime import Network, keras
from clsd.models.backbones.autoint import AutoInt
from clsd.models.backbones.dcn_v2 import DCNv2
from clsd.models.backbones.deepfm import DeepFM
from clsd.models.backbones.din import DIN
from clsd.models.backbones.dlrm import DLRM
from clsd.models.backbones.fibinet import FiBiNET
from clsd.models.backbones.wide_deep import WideDeep
from clsd.models.input_spec import InputSpec
from clsd.models.settings import ModelSettings

BACKBONES: dict[str, Any] = {
    "deepfm": DeepFM,
    "dcn_v2": DCNv2,
    "wide_deep": WideDeep,
    "fibinet": FiBiNET,
    "autoint": AutoInt,
    "dlrm": DLRM,
    "din": DIN,
}

#: Largest width, count or size among the options of a backbone.
_LARGEST_OPTION = 65_536
#: Largest number of layers, or of other values in a row.
_MOST_LAYERS = 100


def build_backbone(settings: ModelSettings, spec: InputSpec, precision: str = "float32") -> Network:
    """Create the backbone that the settings name.

    A user's own is any ``tf_keras.Model`` whose constructor takes ``(spec, embedding_dim, **options)`` and whose call takes
    ``(inputs, training)``, inputs being one tensor a field, and gives logits ``[B]``; of one that takes ``request=None`` as well,
    rows come in parts in ``rank`` (`model_inputs`). It is found as ``package.module:Class`` on the Python path or in the
    working directory.

    Raises:
        UserError: an unknown name, a path that cannot be imported, an option that the backbone does not take.
    """
    backbone = BACKBONES.get(settings.backbone) or _imported(settings.backbone)
    parameters = inspect.signature(backbone.__init__).parameters
    known = [name for name in parameters if name not in ("self", "spec", "embedding_dim")]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in settings.options:
        if option not in known and not takes_any:
            raise UserError(
                f"model.options.{option}", f"{settings.backbone} has no such option", did_you_mean(option, known)
            )
    if settings.backbone in BACKBONES and (odd := _odd_option(settings.options)):
        raise UserError("model.options", odd, "correct it")
    policy = (
        keras.mixed_precision.global_policy()
    )  # Keras has no other way to set the policy of layers that other code creates
    keras.mixed_precision.set_global_policy(precision)
    try:
        return backbone(spec, settings.embedding_dim, **settings.options)
    except UserError:
        raise
    except Exception as error:
        where = "model.options" if settings.options else "model.backbone"
        what = f"{settings.backbone} cannot be created ({type(error).__name__}: {error})"
        raise UserError(where, what, "its constructor takes (spec, embedding_dim, **options)") from error
    finally:
        keras.mixed_precision.set_global_policy(policy)


def _odd_option(value: Any) -> str:
    """What is wrong with an option's value, or with one within it; "" if nothing is."""
    if isinstance(value, dict | list):
        if len(value) > _MOST_LAYERS:
            return f"holds {len(value)} values in a row, more than {_MOST_LAYERS}"
        found = (_odd_option(inner) for inner in (value.values() if isinstance(value, dict) else value))
        return next((odd for odd in found if odd), "")
    if isinstance(value, int) and value > _LARGEST_OPTION:
        return f"holds {value}, more than {_LARGEST_OPTION}"
    return f"holds {value}, which is not finite" if isinstance(value, float) and not math.isfinite(value) else ""


def _imported(path: str) -> Any:
    module_name, colon, class_name = path.partition(":")
    if not colon:
        module_name, _, class_name = path.rpartition(".")
    if not module_name:
        hint = f"{did_you_mean(path, BACKBONES)}; or give the dotted path of your own, package.module:Class"
        raise UserError(f"model.backbone: {path}", "unknown backbone", hint)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        where, reason = f"model.backbone: {path}", " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            where, f"cannot be imported ({reason})", "put its folder on PYTHONPATH, or correct the path"
        ) from error
    if not hasattr(module, class_name):
        known = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise UserError(
            f"model.backbone: {path}", f"{module_name} has no {class_name}", did_you_mean(class_name, known)
        )
    return getattr(module, class_name)
