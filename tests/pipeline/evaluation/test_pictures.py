"""The plots: names of a log are drawn as they stand."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from clsd.pipeline.evaluation.pictures import confidence_by_group, intervals

_SPREAD = {"rows": 10, "mean": 1.0, "median": 1.0, "p10": 0.5, "p25": 0.6, "p75": 1.2, "p90": 1.4}
_DIFFERENCE = {"mean": 0.1, "low": 0.0, "high": 0.2, "p_corrected": 0.01}


@pytest.mark.parametrize(
    "name", ["$10-$20", "$", "$\\frac{1$", r"\$5 $6", "a_b^c", "<b>&amp;", "two\nlines", "\x00\x1b[31m", "x" * 500]
)
def test_any_name_is_drawn_as_text(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for svg in (
            confidence_by_group({name: {"confidence": _SPREAD}}),
            intervals({name: _DIFFERENCE, "plain": _DIFFERENCE}, "AUC", 1e4, "1e-4", 0.05),
        ):
            assert svg.startswith("<svg") and len(svg) < 200_000


def test_a_dollar_is_a_dollar() -> None:
    """The same glyphs as for another character in its place: no formula, whose letters lean."""

    def glyphs(name: str) -> Any:
        svg = confidence_by_group({name: {"confidence": _SPREAD}})
        return {line.strip() for line in svg.splitlines() if "DejaVuSans" in line}

    assert not any("Oblique" in line or "Math" in line or "cmmi" in line for line in glyphs("$ab$"))
    assert any("DejaVuSans-24" in line for line in glyphs("$ab$"))  # 0x24 is the dollar


def test_letters_that_the_font_lacks_are_left_to_the_reader() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = confidence_by_group({"東京 & 😀": {"confidence": _SPREAD}})
    assert "東京 &amp; 😀 (10)" in svg
