from __future__ import annotations

from dfqbench.api import Fidelity, is_live
from dfqbench.synth import GeneratorParams, GeneratorSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.gdfq.plugin import Gdfq, dfqbench_methods


def test_defaults_are_the_released_ones() -> None:
    params = GeneratorParams()
    assert (params.ce_weight, params.bns_weight, params.latent) == (1.0, 0.1, 100)
    assert (params.lr, params.beta1, params.beta2) == (1e-3, 0.5, 0.999)
    assert (params.epochs, params.iterations, params.lr_steps) == (400, 200, (100, 200, 300))
    assert Gdfq.fidelity is Fidelity.RELEASED
    assert Gdfq.quantizer == "distill:gdfq"
    assert [offer.name for offer in dfqbench_methods()] == ["gdfq"]


def test_is_live_with_the_two_released_losses() -> None:
    source = Gdfq(GeneratorParams()).synthesize(toy_network(), ToyContext())
    assert isinstance(source, GeneratorSource)
    assert is_live(source)
    assert [(term.name, term.weight) for term in source.terms] == [("ce", 1.0), ("bns", 0.1)]
    assert not source.needs_student
