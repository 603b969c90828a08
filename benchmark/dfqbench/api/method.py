"""The base classes of plugins, `Method` and `Quantizer`, and the offers that plugins return from their hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

import pluggy

from dfqbench.api.params import NoParams

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.context import Context
    from dfqbench.quant import Student

PROJECT = "dfqbench"
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Mark a function of a plugin as the implementation of a hook in `dfqbench.hookspecs`."""
API_VERSION = 1
"""Version of the plugin interface; raised by changes that break existing plugins."""
FIRST_API_VERSION = 1
"""Version of an offer that names none. It never changes, so that old plugins are recognised."""


class Fidelity(StrEnum):
    """How closely a method follows its authors."""

    RELEASED = "released code"
    PAPER = "paper"
    RECONSTRUCTION = "reconstruction"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Requires:
    """Requirements of a method on the teacher; cells that do not meet them are skipped with the reason.

    Attributes:
        batchnorm: at least one BatchNorm layer with running statistics.
    """

    batchnorm: bool = True


class Method(ABC):
    """A data-free quantization method.

    Derive from it, set the class variables, write `synthesize`. Keep the module of the class free of torch (import
    the part that needs it inside `synthesize`), so that listing methods stays fast.

    Attributes:
        name: short name for the command line (lower case letters, digits, `_`).
        title: name as printed in tables.
        paper: citation, with the year.
        link: web address of the paper (`https://…`); empty: none.
        fidelity: how closely the authors are followed.
        quantizer: shared quantizer that `quantize` uses, as `name` or `name:recipe`.
        requires: requirements on the teacher.
        depends_on_bits: whether `synthesize` uses the scheme; if False, one source serves all bit-widths.
        control: whether this is a lower or upper bound rather than a competitor.
        params_type: frozen dataclass of hyper-parameters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    link: ClassVar[str] = ""
    fidelity: ClassVar[Fidelity]
    quantizer: ClassVar[str] = "calibrate"
    requires: ClassVar[Requires] = Requires(batchnorm=True)
    depends_on_bits: ClassVar[bool] = False
    control: ClassVar[bool] = False
    params_type: ClassVar[type[Any]] = NoParams

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Return the source of images for this teacher.

        Args:
            teacher: full-precision network in eval mode, on `ctx.device`, parameters frozen; leave it as it is.
            ctx: the context of the cell.
        """

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Return the student made of teacher and source; by default with the shared quantizer of the cell."""
        return ctx.shared_quantize(teacher, source)


class Quantizer(ABC):
    """A shared procedure that makes a student of teacher and source.

    Attributes:
        name: short name.
        title: one line.
        params_type: frozen dataclass of hyper-parameters.
        recipes: named parameter values; the first is the default if `default_recipe` is empty.
        default_recipe: recipe of a cross `method+name` that names none.
        cross_images: images that a cross makes of a fixed source whose parameters have `images`, so that all have
            equally many; None: as many as the method makes by itself.
        trains: whether it trains the student; if not, the students of all bit-widths are made one after the other in
            one process.
        needs_folded_batchnorm: whether it works only under protocols that fold BatchNorm into convolutions; raise
            `Unavailable` under others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    trains: ClassVar[bool] = True
    needs_folded_batchnorm: ClassVar[bool] = False
    params_type: ClassVar[type[Any]] = NoParams
    recipes: ClassVar[Mapping[str, Any]] = {}
    default_recipe: ClassVar[str] = ""
    cross_images: ClassVar[int | None] = None

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Return a student of the teacher; arguments as in :meth:`Method.quantize`."""

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Return several students made from one live source whose losses use no student; optional.

        A quantizer that defines it makes the students of all bit-widths at the cost of one source. Each student must
        be bit for bit what `quantize` would make of it alone; if a derived class overrides only `quantize`, that is
        called for each student instead. Do the work for one student inside its context's `for_student`.

        Args:
            teacher: as in `quantize`.
            source: call it once a step, for all students.
            contexts: one for each student; they differ in the scheme.

        Returns:
            The students in the order of the contexts; None for those that have failed.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Offer:
    """A name and the class or function behind it, as an import string, so that listing imports nothing heavy.

    Attributes:
        name: name that users type.
        load: `package.module:attribute`.
        api: version of the plugin interface (`API_VERSION`) that the plugin was written for; always name it.
    """

    name: str
    load: str
    api: int = FIRST_API_VERSION


@dataclass(frozen=True, slots=True)
class FileOffer:
    """A file of a plugin: a grid (TOML), a data folder (with a `targets.toml`) or published numbers (CSV).

    Attributes:
        name: grid name; for a data folder or published numbers any label.
        path: absolute path of the file or folder.
        api: version of the plugin interface (`API_VERSION`) that the plugin was written for; always name it.
    """

    name: str
    path: str
    api: int = FIRST_API_VERSION
