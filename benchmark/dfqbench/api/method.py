"""The class that a plugin author derives from, and the offers by which plugins hand their parts to the host."""

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
"""Version of the plugin contract; raised when a plugin written for an older one would break."""
FIRST_API_VERSION = 1
"""The version that an offer is for which names none: it never changes, so that an old plugin is told from a new one."""


class Fidelity(StrEnum):
    """How closely a method follows its authors."""

    RELEASED = "released code"
    PAPER = "paper"
    RECONSTRUCTION = "reconstruction"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Requires:
    """What a method needs of the teacher; a cell without it is skipped with the reason.

    Attributes:
        batchnorm: at least one BatchNorm with running statistics.
    """

    batchnorm: bool = True


class Method(ABC):
    """A data-free quantization method.

    Derive, set the class variables, write `synthesize`. Keep the module that holds the class free of torch (import
    the part that needs it inside `synthesize`), so that listing methods stays fast.

    Attributes:
        name: short name for the command line (lower case letters, digits, `_`).
        title: name as in print.
        paper: citation.
        fidelity: how closely the authors are followed.
        quantizer: shared quantizer that `quantize` uses, as `name` or `name:recipe`.
        requires: what the teacher must have.
        depends_on_bits: whether `synthesize` looks at the scheme; False lets one source serve all bit-widths.
        control: whether this is a floor or ceiling rather than a competitor.
        params_type: frozen dataclass of hyper-parameters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
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
        """Makes the source of images for this teacher.

        Args:
            teacher: full-precision network in eval mode, on `ctx.device`, parameters frozen; leave it as it is.
            ctx: the host's side of the cell.
        """

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Turns teacher and source into a student; by default with the shared quantizer named by the cell."""
        return ctx.shared_quantize(teacher, source)


class Quantizer(ABC):
    """A shared procedure that turns teacher and source into a student.

    Attributes:
        name: short name.
        title: one line.
        params_type: frozen dataclass of hyper-parameters.
        recipes: named parameter values; the first is the default of a cross where `default_recipe` is empty.
        default_recipe: recipe of a cross `method+name` that writes out none.
        trains: whether it trains the student; where it does not, the students of all bit-widths are made one after
            the other in one process.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    trains: ClassVar[bool] = True
    params_type: ClassVar[type[Any]] = NoParams
    recipes: ClassVar[Mapping[str, Any]] = {}
    default_recipe: ClassVar[str] = ""

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        """Makes a student of the teacher; arguments as in :meth:`Method.quantize`."""

    def quantize_many(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context]
    ) -> Sequence[Student | None]:
        """Make several students from one live source that does not look at them; optional.

        A quantizer that defines it makes the students of all bit-widths at the price of one source. Each student must
        be bit for bit what `quantize` makes of it alone; where a class derived from it overrides only `quantize`, that
        is called for each student. What concerns one student only goes through its context's `for_student`.

        Args:
            teacher: as in `quantize`.
            source: called for all students at once.
            contexts: one for each student; they differ in the scheme.

        Returns:
            The students in the order of the contexts; None for those that have failed.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Offer:
    """A name and where to import the thing from; light, so that listing imports nothing heavy.

    Attributes:
        name: name that users type.
        load: `package.module:attribute`.
        api: the contract version (`API_VERSION`) it was written for; name it.
    """

    name: str
    load: str
    api: int = FIRST_API_VERSION


@dataclass(frozen=True, slots=True)
class FileOffer:
    """A grid (TOML), a data folder (with a `targets.toml`) or claims (CSV) that a plugin brings along.

    Attributes:
        name: grid name; for a data folder or claims any label.
        path: absolute path of the file or folder.
        api: the contract version (`API_VERSION`) it was written for; name it.
    """

    name: str
    path: str
    api: int = FIRST_API_VERSION
