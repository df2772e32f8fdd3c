"""Arguments of the shipped components: their types, and the messages for those that are unknown or invalid."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, create_model

from experiments.config.choices import shipped
from experiments.config.messages import error_line, unknown_key
from experiments.config.schema import GROUPS, Node, Positive

Species = Literal["bears", "cats", "cows", "dogs", "foxes", "lions", "mice", "owls", "pigs", "rabbits"]


class PerClass(Node):
    """Number of synthetic images of each class, by split."""

    train: int = Positive
    validation: int = Positive
    test: int = Field(ge=0)


# Types of the shipped components' arguments, so that invalid ones are found before Keras is imported.
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "data": {
        "root": str,
        "species": Annotated[list[Species], Field(min_length=2)],
        "per_class": PerClass,
        "seed": Annotated[int, Field(ge=0)],
        "size": Annotated[int, Field(ge=8)],
        "url": Annotated[str, Field(pattern="^https?://[^/]")],
        "sha256": Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")],
        "bytes": Annotated[int, Field(ge=1)],
        "archive": str | None,
        "labels": str,
        "images": str | None,
        "path_column": str | None,
        "label_column": str | None,
        "split_column": str | None,
        "pattern": str,
    },
    "augmentation": {
        "rotation": Annotated[float, Field(ge=0, le=180)],
        "width_shift": Share,
        "height_shift": Share,
        "shear": Annotated[float, Field(ge=0, le=89)],
        "zoom": Annotated[float, Field(ge=0, le=0.99)],
        "horizontal_flip": bool,
        "fill": Literal["nearest", "reflect", "wrap", "constant"],
        "operations": Annotated[int, Field(ge=1)],
        "magnitude": Share,
    },
    "model": {"alpha": Annotated[float, Field(gt=0)], "include_preprocessing": bool},
    "optimizer": {
        "momentum": Share,  # momentum; 0: none
        "nesterov": bool,
        "rho": Decay,  # decay rate of the mean of squared gradients
        "beta_1": Decay,  # decay rate of the mean of gradients
        "beta_2": Decay,  # decay rate of the mean of squared gradients
        "amsgrad": bool,
        "centered": bool,
        "epsilon": Annotated[float, Field(gt=0)],  # added to the denominator
        "initial_accumulator_value": Annotated[float, Field(ge=0)],  # initial value of the sums of squared gradients
    },
    "schedule": {
        "final": Share,
        "decay": Annotated[float, Field(gt=0, le=1)],
        "factor": Annotated[float, Field(gt=0, lt=1)],
        "patience": Annotated[int, Field(ge=1)],
        "min_delta": Annotated[float, Field(ge=0)],
        "cooldown": Annotated[int, Field(ge=0)],
        "floor": Annotated[float, Field(ge=0)],
    },
}


@cache
def _arguments_of(group: str) -> type[Node]:
    """Return the model of the arguments of a group's shipped components, all of them optional."""
    fields: dict[str, Any] = {name: (kind, None) for name, kind in ARGUMENTS.get(group, {}).items()}
    return create_model(group, __base__=Node, **fields)


def argument_errors(key: str, group: str, node: Any, missing: Iterable[str]) -> list[str]:
    """Return the messages for arguments of the shipped component at a key that are invalid or unknown to it."""
    if not isinstance(node, dict):
        return []
    alike = [choice for choice in shipped(group).values() if choice.get("_target_") == node.get("_target_")]
    if not alike:
        return []  # the user's own component, which `build` validates against its constructor's signature
    fields = {field.alias or name for name, field in GROUPS[group].model_fields.items()}
    given = {name: value for name, value in node.items() if name not in fields and f"{key}.{name}" not in missing}
    unknown = [name for name in given if name not in alike[0]]
    lines = [unknown_key(f"{key}.{name}", {*alike[0], *fields}, given.pop(name)) for name in unknown]
    try:
        _arguments_of(group).model_validate(given)
    except ValidationError as error:
        lines += [error_line(detail, _arguments_of(group), key) for detail in error.errors()]
    return lines
