"""Tracing with torch.fx, and a forward pass that lists layers and activations in order of execution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from dfqbench.api.errors import Unavailable
from dfqbench.quant.activations import FUNCTIONS, is_activation

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that schemes quantize; their weight's first dimension is the output channel."""
MOST_RETRIES = 200
"""Most untraceable parts of a network; each costs one more trace, and no known network has more than a few dozen."""


class _Tracer(fx.Tracer):
    """A tracer with layers, norms and activations as leaves, so that a subclass's own forward (padding) is used."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self._leaves = leaves
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._leaves or isinstance(m, (*WEIGHTED, BatchNorm)) or is_activation(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is seen first while the exception travels outwards.
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


def trace(network: nn.Module) -> fx.GraphModule:
    """Trace a network in eval mode; a submodule whose control flow depends on data becomes one opaque call.

    The result shares the network's submodules.

    Raises:
        Unavailable: the outermost forward itself cannot be traced.
    """
    leaves: set[str] = set()
    for _ in range(MOST_RETRIES):
        tracer = _Tracer(leaves)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(network)
        except Exception as error:
            if not tracer.failed_in or tracer.failed_in in leaves:
                first_line = next(iter(str(error).strip().splitlines()), "no message")
                raise Unavailable(
                    f"{type(network).__name__} cannot be traced: {type(error).__name__}: {first_line}",
                    "wrap the part with data-dependent control flow into a submodule of its own",
                ) from error
            leaves.add(tracer.failed_in)
            continue
        return fx.GraphModule(tracer.root, graph, type(network).__name__)
    raise Unavailable(f"{type(network).__name__} has more than {MOST_RETRIES} untraceable parts")


def node_module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, with whatever arguments; None for other nodes."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def called_module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a node calls with one tensor and nothing else; None for other nodes."""
    takes_one = isinstance(node, fx.Node) and len(node.args) == 1 and not node.kwargs
    return node_module(traced, node) if takes_one else None


def has_hooks(module: nn.Module) -> bool:
    """Check whether hooks are registered on a module itself."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


@dataclass(slots=True)
class Probe:
    """Layers and activations of a forward pass.

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


class _FunctionalActivations(TorchFunctionMode):
    """Records functional activations by the module in whose forward they are called."""

    def __init__(self, stack: list[tuple[str, nn.Module]], result: Probe) -> None:
        super().__init__()
        self._stack = stack
        self._result = result

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if func in FUNCTIONS or func in (Tensor.relu, Tensor.relu_):
            if not self._stack:
                self._result.activations.append("network")
            elif not is_activation(self._stack[-1][1]) and self._stack[-1][0] not in self._result.unreachable:
                self._result.unreachable.append(self._stack[-1][0])
        return func(*args, **(kwargs or {}))


def probe(traced: fx.GraphModule, example: Tensor) -> Probe:
    """Run `example` (N, C, H, W) through the network once, without a graph, and record what is called."""
    result = Probe()
    stack: list[tuple[str, nn.Module]] = []
    direct = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}

    def enter(name: str, module: nn.Module) -> None:
        stack.append((name, module))
        if isinstance(module, WEIGHTED) and name not in result.layers:
            result.layers.append(name)
        if is_activation(module):
            result.activations.append(name)
            if name not in direct:
                result.inner_activations[name] = result.inner_activations.get(name, 0) + 1

    with ExitStack() as handles:
        for name, module in traced.named_modules():
            if name:
                pre_hook = module.register_forward_pre_hook(lambda m, _args, name=name: enter(name, m))
                handles.enter_context(pre_hook)
                handles.enter_context(module.register_forward_hook(lambda _m, _args, _out: stack.pop() and None))
        with torch.no_grad(), _FunctionalActivations(stack, result):
            traced(example)
    return result
