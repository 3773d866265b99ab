"""YAML of bounded size: a file of a few lines can stand for more values than memory holds, or for one inside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml
from yaml.composer import ComposerError

from mmalign.errors import RecipeError

#: A recipe has a few kilobytes; PyYAML reads 100 of them in a second.
MAX_BYTES: Final = 2**17
#: Lists and mappings inside each other, and values once every alias is written out.
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 20_000


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, with plain types only. Raises RecipeError, one line, naming the file and the line."""
    try:
        if not path.is_file() and path.exists():
            raise RecipeError(f"{path}: is not a file; a recipe is a YAML file")  # a pipe would be waited for
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such recipe; recipes lie under recipes/, and `mmalign demo` needs none"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: has more than {MAX_BYTES} bytes; a recipe is a short YAML file")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "see there"
        raise RecipeError(f"{path}{where}: not valid YAML ({problem})") from None
    except Exception as error:  # what PyYAML makes of dates, numbers and tags may fail in any way
        raise RecipeError(f"{path}: not valid YAML ({str(error) or type(error).__name__:.200})") from None


class _Loader(yaml.SafeLoader):
    """Counts values while they are composed, before any is made, and refuses keys given twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num = 0
        self._sizes: dict[int, int] = {}  # of the nodes that are complete, by their identity

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        before = self._num
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise ComposerError(None, None, f"*{event.anchor:.40} stands inside itself", mark)
            self._num += self._sizes[id(node)]
        else:
            self._num += 1
            self._sizes[id(node)] = self._num - before
        if self._num > MAX_VALUES:
            raise ComposerError(None, None, f"holds more than {MAX_VALUES} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    mark: Any = key.start_mark
                    raise ComposerError(None, None, f"the key {key.value!r:.80} stands twice", mark)
                keys.add(key.value)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) >= 2**63:  # hexadecimal ones may have more digits than Python prints
            raise ComposerError(None, None, "holds a whole number of more than 64 bits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
