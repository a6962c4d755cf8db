"""YAML text of a manifest: fields in the order given, scripts as blocks."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeats instead of anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)


def dump_manifest(*documents: dict[str, Any]) -> str:
    """The documents, separated by `---`."""
    texts = [yaml.dump(d, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for d in documents]
    return "---\n".join(texts)
