"""The schema of a grid file: targets × models × schemes × methods × seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import DfqError, UsageError, unknown_name
from dfqbench.grid.choice import EVERY, parse_method, parse_recipe
from dfqbench.plugins.params import build_params, first_problem
from dfqbench.quant.mixed import Mixed
from dfqbench.quant.scheme import PROTOCOLS, VALID_BITS, Granularity, Operand, Override, Protocol, Scheme, parse_scheme

AUTO = "auto"
"""The budget that means the default budget of the target."""
MIXED = "mixed"
"""Prefix of the parameters that plan mixed precision, in settings."""
ANY_TARGET = "*"
"""The key of `models` for every target without a key of its own."""

Value = bool | int | float | str | list[Any] | dict[str, Any]


def _checked_by(check: Callable[[str], object], *, also: str = "") -> BeforeValidator:
    """Return a validator from a check that raises `DfqError` (pydantic reports ValueErrors with their key)."""

    def validator(value: Any) -> Any:
        if isinstance(value, str) and value != also:
            try:
                check(value)
            except DfqError as error:
                raise ValueError(str(error)) from error
        return value

    return BeforeValidator(validator)


def flattened_settings(value: Any) -> Any:
    """Return settings by dotted name: TOML reads `[set] zeroq.iterations = 1` as a table in a table."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict) and "." not in str(key):
            pairs = {f"{key}.{name}": item for name, item in entry.items()}
        else:
            pairs = {key: entry}
        if twice := flat.keys() & pairs.keys():
            raise ValueError(f"'{min(twice)}' is given twice; give it once")
        flat |= pairs
    for key in flat:
        if not re.fullmatch(r"[^.\s]+\.[^.\s]+", key):
            raise ValueError(f"'{key}' is not a parameter; write method.parameter, for example zeroq.iterations")
    return flat


class Grid(BaseModel):
    """The cells to run.

    Attributes:
        name: short name; the run's name by default.
        title: one line.
        on: targets; empty: the first complete one of imagenet, cifar10, digits.
        methods: method choices (`zeroq`, `zeroq+distill:gdfq`, `real`); `*`: every competitor, and `noise`.
        controls: controls to add under every quantizer that the methods use, `noise,fractal` or `all` (`noise` and
            `real`); `none` leaves every control out; None: those among the methods.
        recipe: recipe of all of them, `gdfq` (of `distill`) or `distill:gdfq`; None: each its own.
        models: models by target; a target without an entry uses that of `*`, else all its models.
        schemes: labels such as `w4a4@gdfq`, and `w4a4@gdfq:size=4bit` in mixed precision.
        mixed: budget of mixed precision for all schemes, such as `size=4bit`; its bits replace those of the weights.
        seeds: one cell for each.
        budget: a budget's name, or `auto`: the default of the target.
        threads: threads of a cell on the CPU; fixed, since results depend on it. Several cells at once (`--jobs`) use
            the cores better than several threads of one cell.
        precision: precision of the training loops (`api.Precision`), or `auto`: the fastest that the device supports.
        limit: number of evaluation images; None: all.
        settings: parameter values by `method.parameter` or `quantizer.parameter` (TOML key `set`).
        absent: methods that a row is kept for although no plugin offers them: why, by name. One that a plugin offers is
            run.
        protocols: new protocols by name: `base`, and the fields of `quant.scheme.Protocol` that differ from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    title: str = ""
    on: tuple[str, ...] = ()
    methods: Annotated[tuple[Annotated[str, _checked_by(parse_method, also=EVERY)], ...], Field(min_length=1)] = (
        EVERY,
    )
    controls: str | None = None
    recipe: Annotated[str, _checked_by(parse_recipe)] | None = None
    models: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    schemes: Annotated[tuple[str, ...], Field(min_length=1)]
    mixed: Annotated[str, _checked_by(Mixed)] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63, strict=True)], ...], Field(min_length=1)] = (0,)
    budget: Annotated[str, _checked_by(budget_named, also=AUTO)] = AUTO
    threads: Annotated[int, Field(ge=1, strict=True)] = 1
    precision: Literal["auto", "float32", "float32-fast", "mixed-bfloat16"] = "auto"
    limit: Annotated[int, Field(ge=1, strict=True)] | None = None
    settings: Annotated[dict[str, Value], BeforeValidator(flattened_settings)] = Field({}, alias="set")
    absent: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], Annotated[str, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$")]
    ] = {}
    protocols: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _check_schemes(self) -> Grid:
        try:
            _ = self.parsed_schemes
        except DfqError as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def protocol_table(self) -> dict[str, Protocol]:
        """The protocols that this grid defines, by name."""
        return {name: custom_protocol(name, changes) for name, changes in self.protocols.items()}

    @cached_property
    def parsed_schemes(self) -> tuple[Scheme, ...]:
        """The schemes, without duplicates."""
        return tuple(dict.fromkeys(self._mixed(parse_scheme(label, self.protocol_table)) for label in self.schemes))

    def _mixed(self, scheme: Scheme) -> Scheme:
        """Return a scheme with the grid's budget, if any, and with the grid's values of the planner's parameters."""
        budget = self.mixed or (scheme.mixed and scheme.mixed.budget)
        if not budget:
            return scheme
        return scheme.mixed_with(build_params(Mixed, {"budget": budget} | self.settings_for(MIXED), MIXED))

    def models_for(self, target: str) -> tuple[str, ...] | None:
        """Return the names of the models to run on a target; None: all of them."""
        return self.models.get(target, self.models.get(ANY_TARGET))

    def settings_for(self, name: str) -> dict[str, Any]:
        """Return the parameter values of a method or quantizer, by parameter name."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)}


def custom_protocol(name: str, changes: Mapping[str, Any]) -> Protocol:
    """Return a protocol that a grid defines.

    Args:
        name: label after the `@`.
        changes: `base` (default `gdfq`) and the fields that differ from it; it has the version of `base`.

    Raises:
        UsageError: the name is taken or malformed, or a field is unknown or wrong.
    """
    where = f"protocol '{name}'"
    if name in PROTOCOLS:
        raise UsageError(f"{where} is built in", "give your own another name")
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise UsageError(f"{where}: the name is not valid", "use lower case letters, digits, '_' and '-'")
    _check_keys(["base", *(field for field in _fields(Protocol) if field not in {"name", "version"})], changes, where)
    base = changes.get("base", "gdfq")
    if not isinstance(base, str) or base not in PROTOCOLS:
        raise unknown_name(f"base of {where}", str(base), PROTOCOLS)
    data = dataclasses.asdict(PROTOCOLS[base]) | {"name": name}
    for key, value in changes.items():
        if key in {"weights", "activations"}:
            _check_keys(_fields(Operand), value, f"{where}, {key}")
            data[key] = data[key] | dict(value)
        elif key != "base":
            data[key] = None if value == "none" else value
    for override in data["overrides"] if isinstance(data["overrides"], list | tuple) else ():
        _check_keys(_fields(Override), override, f"{where}, overrides")
    try:
        protocol: Protocol = TypeAdapter(Protocol).validate_python(data)
    except ValidationError as error:
        key, message = first_problem(error)
        given = error.errors(include_url=False)[0]["input"]
        raise UsageError(f"{where}: key '{key}': {message}, not {given!r}", "correct the value") from error
    _check_bits(protocol, where)
    if protocol.activations.granularity is not Granularity.TENSOR:
        hint = 'leave granularity out of its activations, or write "tensor"'
        raise UsageError(f"{where}: activations have one range for each tensor", hint)
    return protocol


def _fields(dataclass: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(dataclass)]


def _check_keys(names: list[str], given: object, where: str) -> None:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: {given!r} is not a table", "write key = value below it")
    for key in given:
        if key not in names:
            raise unknown_name(f"key of {where}", str(key), names)


def _check_bits(protocol: Protocol, where: str) -> None:
    overridden = [bits for override in protocol.overrides for bits in (override.w_bits, override.a_bits)]
    inputs = (protocol.input_bits, protocol.second_input_bits, protocol.last_input_bits)
    for bits in (protocol.first_bits, protocol.last_bits, *inputs, *overridden):
        if bits is not None and bits not in VALID_BITS:
            raise UsageError(f"{where}: {bits} bits are not supported", "use 2 to 8, or 32 for off")
