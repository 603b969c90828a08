"""Steps of training loops that a GPU repeats from a recording, instead of being told each operation anew."""

from dfqbench.replay.beside import Beside, beside_for
from dfqbench.replay.optimizers import recordable_adam
from dfqbench.replay.rate import LearningRate
from dfqbench.replay.step import ReplayedStep
from dfqbench.replay.tally import Tally, tallied
from dfqbench.replay.tape import Tape, tape_for, taping

__all__ = [
    "Beside",
    "LearningRate",
    "ReplayedStep",
    "Tally",
    "Tape",
    "beside_for",
    "recordable_adam",
    "tallied",
    "tape_for",
    "taping",
]
