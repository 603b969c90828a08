"""Checks of the students that quantizers make, of `requires`, and the comparison with noise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dfqbench.api import DfqError, ModelCard, is_live
from dfqbench.api.batch import serves_many
from dfqbench.quant import Scheme, Student, parse_scheme
from dfqbench.quant.coverage import measure_coverage
from dfqbench.synth.source import FixedSource
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.method_under_test import BATCH, MethodUnderTest, Run
from dfqbench.testing.conformance.plugin_under_test import PluginUnderTest
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network_without_batchnorm

STEPS = 3
"""Steps of a live source with a student and without."""
MARGIN = 2.0
"""Standard errors of the difference that a method may lie below noise without a warning."""


def quantizers(plugin: PluginUnderTest) -> None:
    """Check that every source and built-in quantizer gives a finite student, under every protocol."""
    for name, student in plugin.students.items():
        with torch.no_grad():
            logits = student(toy_images(16))
        if not isinstance(logits, Tensor) or logits.shape != (16, toy_card().classes):
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Fault(f"the student of {name} gives {shown}", "return a network that gives logits (N, classes)")
        if not bool(torch.isfinite(logits).all()):
            raise Fault(f"the student of {name} gives values that are not finite", "look at the images' range")


def levels(plugin: PluginUnderTest) -> Iterable[str]:
    """Check that the students have the requested scheme, and weights and activations take at most 2^bits values."""
    for name, student in plugin.students.items():
        if not isinstance(student, Student):
            yield (
                f"{name} returns a {type(student).__name__}, whose operands cannot be checked; its records are "
                "flagged; start from ctx.prepare(teacher)"
            )
            continue
        if not name.endswith(f" under {student.scheme.label}"):
            raise Fault(f"the student of {name} has the scheme {student.scheme.label}", "use ctx.prepare(teacher)")
        violations = measure_coverage(student, toy_images(4)).violations
        if violations:
            raise Fault(
                f"the student of {name} is not quantized as claimed: {', '.join(violations[:3])}",
                "let its ranges see a batch inside `with student.observing(...)`, or call set_range, and leave its "
                "quantizers in place",
            )


class _WatchedContext(ToyContext):
    """Note whether the scheme was read."""

    scheme_read = False

    @property
    def scheme(self) -> Scheme:
        self.scheme_read = True
        return super().scheme


def requires(method: MethodUnderTest) -> Iterable[str]:
    """Check `requires`, `depends_on_bits` and a source's `needs_student` against what the method does."""
    method_class = method.plugin_class
    _check_needs_student(method)
    base = method.context()
    ctx = _WatchedContext(card=base.card, budget=base.budget, bits=base.bits)
    method.synthesized(ctx)
    if method_class.depends_on_bits and not ctx.scheme_read and not is_live(method.first.source):
        yield (
            "depends_on_bits is True but synthesize did not look at ctx.scheme; with False one source serves all "
            "bit-widths and is paid for once"
        )
    try:
        method.drawn(method.synthesized(teacher=toy_network_without_batchnorm()))
    except DfqError as error:
        if not method_class.requires.batchnorm:
            raise Fault(
                f"requires says that no BatchNorm is needed, but without it {error.message}",
                "set requires = Requires(batchnorm=True)",
            ) from error
    else:
        if method_class.requires.batchnorm:
            yield (
                "requires says that BatchNorm is needed, but it also ran on a network without; if its images are of "
                "use there, set requires = Requires(batchnorm=False)"
            )


def _check_needs_student(method: MethodUnderTest) -> None:
    """Check that a source with `needs_student = False` makes the same batches with a student and without."""
    source, source_alone = method.synthesized().source, method.synthesized().source
    if not is_live(source) or not is_live(source_alone) or not serves_many(source):
        return
    student = method.quantized(method.synthesized(), "calibrate", parse_scheme("w2a2@gdfq"))
    for _ in range(STEPS):
        if not torch.equal(source.train_step(BATCH, student).images, source_alone.train_step(BATCH).images):
            raise Fault(
                "needs_student is False, yet the images change when train_step is given a student",
                "leave needs_student out, or make it True where a loss looks at the student",
            )


def noise(method: MethodUnderTest) -> Iterable[str]:
    """Check that calibration with the images is not worse than with Gaussian noise.

    The task: the embedded digits and their network at four bits, a handful of steps. The host draws the digits; the
    method sees the network alone.
    """
    network, card, digits = _digits()
    run = method.synthesized(method.context(card=card), network)
    stats = card.input_stats
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (stats.mean, stats.std))
    images = torch.randn((64, *card.input_size), generator=torch.Generator().manual_seed(0)) * std + mean
    noise_run = Run(network, FixedSource(images), ToyContext(card=card, budget=run.ctx.budget))
    students = [method.quantized(source, "calibrate", parse_scheme("w4a4@gdfq")) for source in (run, noise_run)]
    with torch.no_grad():
        predictions = network(digits).argmax(1)
        agreement, noise_agreement = ((student(digits).argmax(1) == predictions).double() for student in students)
    difference = agreement - noise_agreement
    error = max(float(difference.std()) / len(difference) ** 0.5, 1 / len(difference))
    if float(difference.mean()) < -MARGIN * error:
        yield (
            f"calibrated with its images, the digits network at w4a4 agrees with full precision on "
            f"{100 * float(agreement.mean()):.1f} % of the digits, with noise on "
            f"{100 * float(noise_agreement.mean()):.1f} %; a handful of steps is no verdict, but look at the images, "
            f"and at `dfqbench run --grid w4a4 --on digits --methods {method.name},noise`"
        )


def _digits() -> tuple[nn.Module, ModelCard, Tensor]:
    from dfqbench.models.build import build_teacher
    from dfqbench.models.spec import ModelSpec
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.evaluation import load_evaluation

    catalogue = Catalogue.discover([], [], families={})
    model, dataset = catalogue.models("digits")[0], catalogue.target("digits").dataset
    if not isinstance(model, ModelSpec) or dataset is None:
        raise Fault("the embedded digits are not there", "pip install scikit-learn")
    batches = load_evaluation(dataset, model.card).batches(500)
    return build_teacher(model), model.card, torch.cat([batch for batch, _ in batches])
