"""Generator of docs/configuration.md from conf/ and the schema, run by `make reference`.

It lets the meaning of a key be written in one place. Defaults and most meanings come from the YAML files, ranges from
the schema. The comment on a field's line in the schema gives a meaning that no YAML file gives.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, TypeAdapter

from experiments.config import arguments, schema
from experiments.storage import atomic_files
from experiments.system.paths import CONF

PAGE = Path(__file__).with_suffix(".md")
GROUPS = {
    "data": "Which images, at which size, how split.",
    "augmentation": "What happens to training images; [augmentation.md](augmentation.md) shows it.",
    "model": "The backbone, its weights and blocks, and the head on it.",
    "optimizer": "That of the run's last phase. `lr` is Keras's `learning_rate`; all other keys are the Keras class's.",
    "schedule": "The learning rate by epoch.",
    "regime": "How the network is trained. Each brings a default optimizer; the command line wins, in any order.",
    "runtime": "",
    "tracking": "Where MLflow is.",
    "sweep": "How a sweep runs: [sweeps.md](sweeps.md).",
    "hydra/sweeper": "",
    "hydra/launcher": "What runs a sweep's jobs: [cluster.md](cluster.md).",
    "experiment": "Named runs: only what differs from the defaults. The command line still wins.",
    "debug": "On top of any run or preset; the command line still wins.",
}
NAMED = {"model.layers": "BLOCK", "model.head.dense": "LAYER"}  # mappings whose keys the user names
UNTYPED = ("name", "_target_")  # keys of a component, which users set by choosing its file
LONG = 60  # characters of a value that a cell shows
INTRO = """# Configuration reference

<!-- Written by `make reference` out of conf/ and src/experiments/config/: change those, not this page. -->

A run is one choice out of each group, and values on top, in any order:

```sh
python -m experiments.train regime=finetune model=mobilenet_v2 optimizer.lr=1e-4
```

`GROUP=CHOICE` takes a choice whole, `KEY=VALUE` sets one value, `+KEY=VALUE` adds a key where keys are yours
(`+tags.why=x`, `+model.layers.block4={filters:128}`), `~KEY` takes one away. `--cfg job` shows what comes out, without
running it. A choice of your own is a file `FOLDER/GROUP/NAME.yaml`, found with `--config-dir FOLDER`; its `name` is the
file's, its `_target_` the class or function that it is made by. What is not allowed below is refused before anything
starts, and so are whole numbers from 2147483648 on.

The column `default` has the value of the choice that is taken where none is named, then those of other choices.
"""


class Line(NamedTuple):
    """A key of a YAML file."""

    text: str  # the value as written
    comment: str  # on its line, or on a line of its own above
    first: bool  # whether it is the first key of its line, so that the comment is about it


class Choice(NamedTuple):
    """A file of conf/."""

    name: str
    header: list[str]  # its comment lines before the first key
    body: str  # the text after the header
    chosen: list[str]  # choices of other groups in its defaults list, each GROUP=CHOICE
    lines: dict[str, Line]  # by the key as it is typed


def read(path: Path) -> Choice:
    """Read the comments and values of a YAML file."""
    text = path.read_text(encoding="utf-8")
    rows = text.splitlines()
    begin = next(number for number, row in enumerate(rows) if not row.startswith("#"))
    header = [row.removeprefix("# ") for row in rows[:begin] if not row.startswith("# @package")]
    above, comments = "", dict[int, str]()
    for number, row in enumerate(rows[begin:], begin):
        alone, beside = re.fullmatch(r"\s*# (.*)", row), re.search(r"\S\s+# (.*)", row)
        comments[number] = beside[1] if beside else above
        above = alone[1] if alone else ""
    is_global = rows[0] == "# @package _global_" or path.parent == CONF
    prefix = "" if is_global else f"{path.parent.relative_to(CONF)}.".replace("/", ".")
    root = yaml.compose(text)
    pairs = [
        (group.value.removeprefix("override ").lstrip("/").partition("@_global_.")[0], name.value)
        for key, entries in root.value if key.value == "defaults"
        for entry in entries.value if isinstance(entry, yaml.MappingNode)
        for group, name in entry.value
    ]  # fmt: skip
    root.value = [(key, value) for key, value in root.value if key.value != "defaults"]
    lines = dict(flat(root, prefix, comments, set()))
    lines |= {group.partition("@")[2]: Line(name, "", False) for group, name in pairs if "@" in group}
    chosen = [f"{group}={name}" for group, name in pairs]
    return Choice(path.stem, header, "\n".join(rows[begin:]).strip(), chosen, lines)


def flat(
    node: yaml.MappingNode, prefix: str, comments: Mapping[int, str], begun: set[int]
) -> Iterator[tuple[str, Line]]:
    """Yield every key of a mapping and, with dotted names, of the mappings in it.

    The name of a mapping in a list is its position there.

    Args:
        begun: the numbers of the lines on which a key has been found; updated in place.
    """
    for name, value in node.value:
        number, key = name.start_mark.line, f"{prefix}{name.value}"
        yield key, Line(written(value), comments.get(number, ""), number not in begun)
        begun.add(number)
        below = {"": value}
        if isinstance(value, yaml.SequenceNode):
            below = {f".{at}": item for at, item in enumerate(value.value)}
        for place, item in below.items():
            if isinstance(item, yaml.MappingNode):
                yield from flat(item, f"{key}{place}.", comments, begun)


def written(node: yaml.Node) -> str:
    """Return a value as written in YAML; for a mapping its keys, for a component its class."""
    if isinstance(node, yaml.ScalarNode):
        return f'"{node.value}"' if node.style == '"' else node.value
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(written, node.value))}]"
    below = {key.value: value for key, value in node.value}
    if "_target_" in below:
        return str(below["_target_"].value).rpartition(".")[2]
    return ", ".join(below) or "{}"


def kind(text: str) -> str:
    """Return the type of a value in words, for keys whose type is known only from their YAML."""
    if text.startswith("["):
        return "list"
    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text):
        return "number"
    fixed = {"true": "true or false", "false": "true or false", "null": "`null`", "{}": "mapping"}
    return fixed.get(text, "text")


def comments() -> dict[tuple[str, str], str]:
    """Return the comments on the lines of the schema's fields, by class (or group of ARGUMENTS) and field."""
    found = {}
    for module in (schema, arguments):
        source = Path(module.__file__).read_text(encoding="utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        node: Any
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        found[node.name, field.target.id] = said.get(field.end_lineno, "")
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ARGUMENTS":
                for group, names in zip(node.value.keys, node.value.values, strict=True):
                    for argument, checked in zip(names.keys, names.values, strict=True):
                        found[group.value, argument.value] = said.get(checked.end_lineno, "")
    return found


class Field(NamedTuple):
    """A key of the schema: its allowed values in words, and the comment on its line."""

    allowed: str
    comment: str


def fields() -> dict[str, Field]:
    """Return every key of the schema, including arguments of components, by its name on the command line."""
    said = comments()
    whole = schema.Config.model_json_schema()
    found: dict[str, Field] = {}

    def walk(name: str, node: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> None:
        for field, below in node["properties"].items():
            key = f"{prefix}{field}"
            kinds = below.get("anyOf", [below])
            referred = [one["$ref"].rpartition("/")[2] for one in kinds if "$ref" in one]
            named = [reference(one["additionalProperties"]) for one in kinds if "additionalProperties" in one]
            if referred and key != "regime.head_optimizer":
                walk(referred[0], definitions[referred[0]], definitions, f"{key}.")
                continue
            found[key] = Field("as `optimizer`" if referred else allowed(below), said.get((name, field), ""))
            if key in NAMED:
                walk(named[0], definitions[named[0]], definitions, f"{key}.{NAMED[key]}.")

    walk("Config", whole, whole["$defs"], "")
    for group, names in arguments.ARGUMENTS.items():
        for argument, checked in names.items():
            if isinstance(checked, type) and issubclass(checked, BaseModel):
                walk(checked.__name__, checked.model_json_schema(), {}, f"{group}.{argument}.")
            else:
                found[f"{group}.{argument}"] = Field(allowed(TypeAdapter(checked).json_schema()), said[group, argument])
    return found


def reference(node: Any) -> str:
    """Return the name of the model that a mapping's values are instances of, or an empty text."""
    kinds = node.get("anyOf", [node]) if isinstance(node, dict) else []
    return next((one["$ref"].rpartition("/")[2] for one in kinds if "$ref" in one), "")


def allowed(node: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in node:
        return " or ".join(map(allowed, node["anyOf"]))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        least = f", at least {node['minItems']}" if "minItems" in node else ""
        items = node["items"]
        if items.get("type") == "number":
            return f"list of {node['minItems']} numbers"
        return f"list{least}" + (f" of {allowed(items)}" if items.get("type") == "string" else " of mappings")
    if node.get("type") == "object":
        below = node.get("additionalProperties")
        return "mapping" if not isinstance(below, dict) or reference(below) else f"mapping of names to {allowed(below)}"
    name = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "`null`",
    }
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [
        f"{word} {node[bound]:g}" if node[bound] < 1e6 else f"{word} {node[bound]}"
        for bound, word in bounds.items()
        if bound in node
    ]
    if "pattern" in node:
        limits.append(f"of the form `{node['pattern']}`")
    return ", ".join([name[node["type"]], *([" and ".join(limits)] if limits else [])])


def placed(key: str) -> str:
    """Return a key with placeholders for names that users choose.

    For example, model.layers.block1.filters becomes model.layers.BLOCK.filters.
    """
    for mapping, name in NAMED.items():
        key = re.sub(rf"^({re.escape(mapping)})\.\w+(?=\.|$)", rf"\1.{name}", key)
    return key


def table(sources: Mapping[str, Mapping[str, Line]], known: Mapping[str, Field], prefix: str = "") -> list[str]:
    """Return a Markdown table with a row for each key: its default, other choices' values, allowed values, meaning.

    Args:
        sources: the lines of a group's choices by the choice's name, the default choice first. The lines of the name
            "" apply to all choices.
        known: the schema's keys.
        prefix: the beginning of those schema keys that get a row even where no choice sets them.

    Raises:
        ValueError: no comment gives the meaning of some keys.
    """
    order = [placed(key) for lines in sources.values() for key in lines]
    order += [key for key in known if prefix and key.startswith(prefix)]
    rows, unsaid = [], []
    for key in dict.fromkeys(order):
        is_mapping = any(other.startswith(f"{key}.") for other in order) and key not in known
        if is_mapping or key.rpartition(".")[2] in UNTYPED or key.endswith(tuple(NAMED.values())):
            continue
        at = {name: [line for full, line in lines.items() if placed(full) == key] for name, lines in sources.items()}
        at = {name: lines for name, lines in at.items() if lines}
        values = {name: ", ".join(dict.fromkeys(line.text for line in lines)) for name, lines in at.items()}
        own = {name: lines[0].comment for name, lines in at.items() if lines[0].first}
        inherited = {name: lines[0].comment for name, lines in at.items()}
        if key in known and not any(own.get(name) for name in ("", next(iter(sources)))):
            own = {"": known[key].comment} | own
        meaning = told(own, sources) or told(inherited, sources)
        if not meaning:
            unsaid.append(key)
        if key in known:
            may_be = known[key].allowed
        elif key.startswith("augmentation.layers."):
            may_be = "as Keras's layer has it"
        else:
            may_be = " or ".join(sorted({*map(kind, values.values())}, reverse=True))
        rows.append(f"| `{key}` | {told(values, sources, code=True)} | {cell(may_be)} | {meaning} |")
    if unsaid:
        raise ValueError(f"say in a comment in conf/, schema.py or arguments.py what these mean: {', '.join(unsaid)}")
    return ["| key | default | allowed | meaning |", "|---|---|---|---|", *rows]


def told(texts: Mapping[str, str], sources: Mapping[str, Any], code: bool = False) -> str:
    """Join the texts of choices into one cell, in which equal texts appear once.

    The text of all choices, or of the default one, appears without a name; others follow the names of their choices.
    """
    by_text: dict[str, list[str]] = {}
    for name, text in texts.items():
        if text:
            by_text.setdefault(text, []).append(name)
    default = next(iter(name for name in sources if name), "")
    parts = []
    for text, names in by_text.items():
        shown = f"`{text if len(text) <= LONG else text[:LONG] + ' ...'}`" if code else cell(text)
        plain = default in names or ("" in names and not texts.get(default)) or (not code and len(by_text) == 1)
        parts.append(shown if plain else f"{', '.join(name or 'other choices' for name in names)}: {shown}")
    return "; ".join(parts)


def cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    return re.sub(r"<(\w+)>", r"`<\1>`", text).replace("|", "\\|")


def group_section(group: str, base: Choice, known: Mapping[str, Field]) -> list[str]:
    """Return the page's section on a group: its choices, then its keys."""
    default = next((one.partition("=")[2] for one in base.chosen if one.startswith(f"{group}=")), "")
    choices = [read(path) for path in sorted((CONF / group).glob("*.yaml"))]
    choices.sort(key=lambda choice: choice.name != default)
    prefix = f"{group}.".replace("/", ".")
    if len(choices) == 1:
        lines = [f"## {group}", "", f"{' '.join(choices[0].header)} {GROUPS[group]}".strip()]
    else:
        lines = [f"## {group}", "", GROUPS[group], "", "| choice | what it is | made by |", "|---|---|---|"]
        for choice in choices:
            mark = " (default)" if choice.name == default else ""
            target = choice.lines.get(f"{prefix}_target_")
            made = f"`{target.text}`" if target else ""
            lines.append(f"| `{group}={choice.name}`{mark} | {cell(' '.join(choice.header))} | {made} |")
    own = {key for choice in choices for key in choice.lines}
    of_all = {key: line for key, line in base.lines.items() if key.startswith(prefix) or key in own}
    sources = {choice.name: choice.lines for choice in choices}
    first, *rest = sources
    ordered = {first: sources[first], "": of_all, **{name: sources[name] for name in rest}}
    return [*lines, "", *table(ordered, known, prefix), ""]


def preset_section(group: str) -> list[str]:
    """Return the page's section on presets: the description, commands and settings of each."""
    lines = [f"## {group}", "", GROUPS[group], ""]
    for choice in (read(path) for path in sorted((CONF / group).glob("*.yaml"))):
        commands = [line for line in choice.header if line.startswith(("python -m", "make "))]
        about = " ".join(line for line in choice.header if line not in commands)
        lines += [f"### {group}={choice.name}", "", cell(about), "", "```sh", *commands, "```", ""]
        lines += ["```yaml", *choice.body.splitlines(), "```", ""]
    return lines


def page() -> str:
    """Return the whole text of docs/configuration.md."""
    base, known = read(CONF / "config.yaml"), fields()
    groups = [group for group in GROUPS if group not in ("experiment", "debug")]
    heads = tuple(f"{group}.".replace("/", ".") for group in groups)
    whole = {key: line for key, line in base.lines.items() if not f"{key}.".startswith((*heads, "hydra."))}
    folders = {key: line for key, line in base.lines.items() if key.startswith(("hydra.run.", "hydra.sweep."))}
    lines = [*INTRO.splitlines(), "", "## The run as a whole", "", *table({"": whole | folders}, known), ""]
    for group in groups:
        lines += group_section(group, base, known)
    for group in ("experiment", "debug"):
        lines += preset_section(group)
    return "\n".join(lines)


if __name__ == "__main__":
    atomic_files.write_file(PAGE, page().encode())
