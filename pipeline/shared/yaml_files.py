"""Reads YAML that a user wrote or was given: whatever it holds, it is read within bounds or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from clsd.features.errors import UserError

#: Bounds of a config: bytes of text, values after aliases are expanded, and levels of nesting. The largest real ones have some
#: hundred features of ten settings each.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 4 << 20, 200_000, 50
#: Bound of the values before aliases are expanded: the parser takes a tenth of a millisecond for each.
MAX_NODES = 50_000
_BOUND_HINT = "a config holds settings, not data"


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML; errors name ``where`` and the line.

    Raises:
        UserError: the text is not YAML, holds a key twice or an impossible value, or is too large.
    """
    if len(text) > MAX_BYTES:
        raise UserError(where, f"has more than {MAX_BYTES >> 20} MiB", _BOUND_HINT)
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(at, f"is not YAML ({problem})", "correct that line") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """The safe loader, with a bound on levels; its errors for impossible dates and numbers name the line."""

    _depth = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Part of the loader."""
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._nodes > MAX_NODES:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES:,} values", mark)
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Part of the loader."""
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError("an integer of more than 64 bits")
        except yaml.YAMLError:
            raise
        except Exception as error:  # a tag with a value that it does not take
            reason = str(error).partition(";")[0]
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None
        return value


def _check(root: yaml.Node, where: str) -> None:
    """Refuse keys that stand twice, and more values or levels than the bounds, without expanding aliases."""
    measured: dict[int, tuple[int, int]] = {}  # number of values and levels of each node, aliases expanded

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in measured:
            if measured[id(node)][0]:
                return measured[id(node)]
            raise _refusal(node, "holds itself through an alias")
        measured[id(node)] = 0, 0
        parts = [measure(child) for child in _children(node, _refusal)]
        size, depth = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if size > MAX_VALUES:
            raise _refusal(node, f"holds more than {MAX_VALUES:,} values after its aliases are expanded")
        if depth > MAX_DEPTH:
            raise _refusal(node, f"is nested more than {MAX_DEPTH} levels deep after its aliases are expanded")
        measured[id(node)] = size, depth
        return size, depth

    def _refusal(node: yaml.Node, what: str, hint: str = _BOUND_HINT) -> UserError:
        return UserError(f"{where}:{node.start_mark.line + 1}", what, hint)

    measure(root)


def _children(node: yaml.Node, refusal: Callable[..., UserError]) -> list[yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        return list(node.value) if isinstance(node, yaml.SequenceNode) else []
    keys: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in keys:
                raise refusal(key, f"'{key.value}' stands twice", "remove one of them")
            keys.add(key.value)
    return [child for pair in node.value for child in pair]
