"""One forward pass through a traced network that finds its layers and activation functions in order of execution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from dfqbench.quant.activations import FUNCTIONS, is_activation
from dfqbench.quant.trace import WEIGHTED


@dataclass(slots=True)
class Probe:
    """What a forward pass met.

    Attributes:
        layers: dotted names of convolutions and linear layers, in the order of their first call.
        activations: dotted names of activation modules, and `network` for functional calls in the graph.
        inner_activations: activation modules inside untraced parts, with their calls in one pass.
        unreachable: untraced parts that call activation functions without a module.
    """

    layers: list[str] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    inner_activations: dict[str, int] = field(default_factory=dict)
    unreachable: list[str] = field(default_factory=list)


class _FunctionWatch(TorchFunctionMode):
    """Notes functional activations by the module in whose forward they are called."""

    def __init__(self, stack: list[tuple[str, nn.Module]], found: Probe) -> None:
        super().__init__()
        self._stack = stack
        self._found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if func in FUNCTIONS or func in (Tensor.relu, Tensor.relu_):
            if not self._stack:
                self._found.activations.append("network")
            elif not is_activation(self._stack[-1][1]) and self._stack[-1][0] not in self._found.unreachable:
                self._found.unreachable.append(self._stack[-1][0])
        return func(*args, **(kwargs or {}))


def probe(traced: fx.GraphModule, example: Tensor) -> Probe:
    """Runs `example` (N, C, H, W) through the network once, without a graph, and notes what is called."""
    found = Probe()
    stack: list[tuple[str, nn.Module]] = []
    direct = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    handles = []

    def enter(name: str, module: nn.Module) -> None:
        stack.append((name, module))
        if isinstance(module, WEIGHTED) and name not in found.layers:
            found.layers.append(name)
        if is_activation(module):
            found.activations.append(name)
            if name not in direct:
                found.inner_activations[name] = found.inner_activations.get(name, 0) + 1

    for name, module in traced.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda m, _args, name=name: enter(name, m)))
            handles.append(module.register_forward_hook(lambda _m, _args, _out: stack.pop() and None))
    try:
        with torch.no_grad(), _FunctionWatch(stack, found):
            traced(example)
    finally:
        for handle in handles:
            handle.remove()
    return found
