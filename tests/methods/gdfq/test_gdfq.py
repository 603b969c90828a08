from __future__ import annotations

from dfqbench.api import is_live
from dfqbench.synth import GeneratorParams, GeneratorSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.gdfq.plugin import Gdfq


def test_losses_are_the_two_released_ones() -> None:
    source = Gdfq(GeneratorParams()).synthesize(toy_network(), ToyContext())
    assert is_live(source)
    assert isinstance(source, GeneratorSource)
    assert [(term.name, term.weight) for term in source.terms] == [("ce", 1.0), ("bns", 0.1)]
    assert not source.needs_student
