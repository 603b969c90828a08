"""Plugins that do damage around them: to their attempt's folder, the run's, the process, or their own messages.

Every method makes Gaussian images, as the control `noise` does, after one accident in `synthesize`. `ACCIDENTS` has
them by name.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl
from dfqbench.synth.source import FixedSource

ACCIDENTS: dict[str, type[Method]] = {}


def accident(act: Callable[[Context], None]) -> Callable[[Context], None]:
    def synthesize(self: Method, teacher: nn.Module, ctx: Context) -> SampleSource:
        act(ctx)
        return FixedSource(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))

    name = act.__name__.replace("_", "-")
    facts: dict[str, Any] = {"name": name, "title": name, "paper": "none", "fidelity": Fidelity.RECONSTRUCTION}
    facts |= {"requires": Requires(batchnorm=False), "synthesize": synthesize, "__module__": __name__}
    ACCIDENTS[name] = type(name, (Method,), facts)
    return act


# --- folders -----------------------------------------------------------------------------------------


@accident
def removes_attempt(ctx: Context) -> None:
    shutil.rmtree(ctx.workdir.parent)


@accident
def removes_run(ctx: Context) -> None:
    shutil.rmtree(ctx.workdir.parents[3])


@accident
def working_folder(ctx: Context) -> None:
    os.chdir("/")


# --- exceptions --------------------------------------------------------------------------------------


@accident
def exits_well(ctx: Context) -> None:
    sys.exit(0)


@accident
def exits_with_text(ctx: Context) -> None:
    sys.exit("text")


@accident
def interrupts(ctx: Context) -> None:
    raise KeyboardInterrupt


class Bye(BaseException):
    pass


@accident
def own_base_exception(ctx: Context) -> None:
    raise Bye("farewell")


class MuteError(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(3)


@accident
def message_raises(ctx: Context) -> None:
    raise MuteError


@accident
def message_is_long(ctx: Context) -> None:
    raise type("E" * 10**5, (Exception,), {})("x" * 10**7)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    globals().update({method.__name__.replace("-", "_") + "_method": method for method in ACCIDENTS.values()})
    return [Offer(name, f":{name.replace('-', '_')}_method") for name in ACCIDENTS]
