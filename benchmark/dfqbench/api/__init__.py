"""The interface that every plugin imports; stable, imports no torch."""

from dfqbench.api.batch import Batch, LiveSource, SampleSource, has_images, is_live
from dfqbench.api.budget import BUDGETS, Budget, budget_named
from dfqbench.api.card import InputStats, ModelCard
from dfqbench.api.context import Context
from dfqbench.api.errors import (
    DfqError,
    InputError,
    NonFiniteError,
    PluginError,
    Skip,
    Unavailable,
    UsageError,
    unknown_name,
)
from dfqbench.api.method import API_VERSION, Fidelity, FileOffer, Method, Offer, Quantizer, Requires, hookimpl
from dfqbench.api.params import NoParams, ParamInfo, describe_params, param
from dfqbench.api.precision import Precision

__all__ = [
    "API_VERSION",
    "BUDGETS",
    "Batch",
    "Budget",
    "Context",
    "DfqError",
    "Fidelity",
    "FileOffer",
    "InputError",
    "InputStats",
    "LiveSource",
    "Method",
    "ModelCard",
    "NoParams",
    "NonFiniteError",
    "Offer",
    "ParamInfo",
    "PluginError",
    "Precision",
    "Quantizer",
    "Requires",
    "SampleSource",
    "Skip",
    "Unavailable",
    "UsageError",
    "budget_named",
    "describe_params",
    "has_images",
    "hookimpl",
    "is_live",
    "param",
    "unknown_name",
]
