"""Tracing of networks with torch.fx, with parts that cannot be traced kept whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfqbench.api.errors import Unavailable
from dfqbench.quant.activations import is_activation

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that schemes quantize; their weight's first dimension is the output channel."""
MOST_RETRIES = 200
"""Untraceable parts found one by one before giving up; no network seen has more than a few dozen."""


class _Tracer(fx.Tracer):
    """Keeps layers, norms and activations whole, so that a subclass's own forward (padding, say) stays in use."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self._whole = whole
        self._stack: list[str] = []
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._whole or isinstance(m, (*WEIGHTED, _BatchNorm)) or is_activation(m):
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
    """Traces a network; a submodule whose control flow depends on data becomes one opaque call.

    Args:
        network: in eval mode; its submodules are shared with the result.

    Returns:
        A graph module that computes the same.

    Raises:
        Unavailable: the outermost forward itself cannot be traced.
    """
    whole: set[str] = set()
    for _ in range(MOST_RETRIES):
        tracer = _Tracer(whole)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tracer.trace(network)
        except Exception as error:
            if not tracer.failed_in or tracer.failed_in in whole:
                raise Unavailable(
                    f"{type(network).__name__} cannot be traced: {type(error).__name__}: {_first_line(error)}",
                    "wrap the part with data-dependent control flow into a submodule of its own",
                ) from error
            whole.add(tracer.failed_in)
            continue
        return fx.GraphModule(tracer.root, graph, type(network).__name__)
    raise Unavailable(f"{type(network).__name__} has more than {MOST_RETRIES} untraceable parts")


def called_module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that a node calls with one tensor and nothing else; None for other nodes."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return traced.get_submodule(str(node.target)) if is_call else None


def has_hooks(module: nn.Module) -> bool:
    """Check whether hooks are registered on a module itself."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"
