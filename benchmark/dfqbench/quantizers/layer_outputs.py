"""The outputs of some convolutions in a forward pass, of teacher and student alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from dfqbench.quant.trace import BatchNorm, node_module
from dfqbench.synth.statistics import PassRecorder


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """The output of a convolution.

    Attributes:
        output: (N, C, H, W), a part of the pass's graph.
        norm: the BatchNorm that reads it; None: it is folded, or there is none.
    """

    output: Tensor
    norm: nn.Module | None

    @property
    def normalized(self) -> Tensor:
        """The output of the BatchNorm in eval mode, computed again: a student's may be fused with what follows."""
        if self.norm is None:
            return self.output
        norm: Any = self.norm
        return F.batch_norm(self.output, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class LayerOutputs(PassRecorder):
    """Records the outputs of some convolutions of a network's pass while it is entered."""

    def __init__(self, network: nn.Module, graph: fx.GraphModule, names: Sequence[str]) -> None:
        """Find the layers.

        Args:
            network: in eval mode.
            graph: its trace, with the network's own layers.
            names: dotted names of the convolutions.
        """
        super().__init__(network)
        self._layers = {name: (graph.get_submodule(name), norm_after(graph, name)) for name in names}

    def _restart(self) -> None:
        self._outputs: dict[str, LayerOutput] = {}  # a new one: the old one was given away

    def _hooks(self) -> list[RemovableHandle]:
        return [layer.register_forward_hook(self._keeper(name, norm)) for name, (layer, norm) in self._layers.items()]

    def _keeper(self, name: str, norm: nn.Module | None) -> Callable[[Any, Any, Tensor], Tensor | None]:
        """Return the hook that keeps a layer's output; without BatchNorm a sum or activation may write into it."""

        def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            self._outputs[name] = LayerOutput(output, norm)
            return output.clone() if norm is None else None

        return keep

    @property
    def last(self) -> Mapping[str, LayerOutput]:
        """Outputs of the last pass by name."""
        return self._outputs


def norm_after(graph: fx.GraphModule, name: str) -> nn.Module | None:
    """Return the BatchNorm with running statistics that alone reads the output of a layer, or None."""
    users = [user for node in graph.graph.nodes if node.target == name for user in node.users]
    if len(users) != 1 or users[0].all_input_nodes[0].target != name:
        return None
    norm = node_module(graph, users[0])
    return norm if isinstance(norm, BatchNorm) and norm.running_mean is not None else None
