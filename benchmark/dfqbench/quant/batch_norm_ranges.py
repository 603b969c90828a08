"""Stub."""

from dfqbench.api.errors import Unavailable


def set_ranges_from_batchnorm(student, card, deviations=6.0):
    raise Unavailable("no ranges from BatchNorm yet", "use noise")
