"""What follows a BatchNorm layer in a traced network."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from dfqbench.quant.trace import called_module

_ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_HARMLESS: frozenset[Any] = frozenset(
    {getattr, operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.neg, F.pad}
)
HARMLESS = "is_harmless"
"""Key of what is noted of a node whose function changes nothing."""
_IN_PLACE = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"}
)


@dataclass(frozen=True, slots=True)
class Tail:
    """The calls after a BatchNorm layer whose results nobody else reads.

    Attributes:
        addition: an addition of another tensor, where there is one.
        residual: this other tensor.
        last: the call that takes the sum, or the layer's output itself.
    """

    addition: fx.Node | None
    residual: fx.Node | None
    last: fx.Node


def tail_of(traced: fx.GraphModule, norm: fx.Node) -> Tail | None:
    """The tail of a BatchNorm layer's call.

    None where several calls read its output, or where the other tensor of an addition would be changed in place.
    """
    last = _only_user(norm)
    if last is None or last.target not in _ADDITIONS or last.op not in {"call_function", "call_method"}:
        return None if last is None else Tail(None, None, last)
    others = [argument for argument in last.args if argument is not norm]
    if len(last.args) != 2 or last.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    if in_place(traced, last) and last.args[0] is not norm:
        return None
    after = _only_user(last)
    return None if after is None else Tail(last, others[0], after)


def replace_tail(traced: fx.GraphModule, norm: fx.Node, tail: Tail, block: fx.Node) -> None:
    """Puts `block` in the place of a BatchNorm layer's call and its tail."""
    tail.last.replace_all_uses_with(block)
    for node in (tail.last, tail.addition, norm):
        if node is not None:
            traced.graph.erase_node(node)


def in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call changes what it takes."""
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    changes = node.target is operator.setitem or (getattr(operator, name, None) is node.target and name in _IN_PLACE)
    return changes or name.endswith("_") or bool(node.kwargs.get("inplace")) or any(a is True for a in node.args)


def nothing_happens(traced: fx.GraphModule, first: fx.Node, last: fx.Node) -> bool:
    """Whether a call may as well be made where a later one is: nothing between can change a tensor or call a layer."""
    between = first.next
    while between is not last:
        if not _is_harmless(traced, between):
            return False
        between = between.next
    return True


def _is_harmless(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_identity(called_module(traced, node))
    known = node.op == "call_function" and (node.target in _HARMLESS or node.meta.get(HARMLESS, False))
    return node.op in {"get_attr", "placeholder"} or (known and "out" not in node.kwargs)


def is_identity(module: nn.Module | None) -> bool:
    """Whether a module gives what it takes, and nothing else."""
    return type(module) is nn.Identity


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
