"""What `sim.trainable` does: asks the backend to learn the grids that a user's modes allow."""

from __future__ import annotations

from functools import partial
from typing import Any

from isobit.backend.optional import TrainsGrids
from isobit.errors import ModelError
from isobit.quantsim.simulation import Simulation
from isobit.training.beside_adapters import check_formats
from isobit.training.kept_zeros import sparse_sites, zeros_to_tell
from isobit.training.learned_grids import learned_grids
from isobit.training.modes import TrainingModes
from isobit.warn import warn


def native_of(simulation: Simulation) -> Any:
    """The framework's own model; one that offers to learn its ranges does so as `sim.trainable()`."""
    if isinstance(simulation.model.inner, TrainsGrids):
        simulation.model.inner.learn_by(partial(start_training, simulation, TrainingModes()))
    return simulation.model.native


def start_training(simulation: Simulation, modes: TrainingModes, *, keep_zeros: bool = True) -> None:
    """Learn the grids that these modes ask for, from the encodings as they are, and no others.

    With `keep_zeros` quantized weights of which at least a quarter is zero keep their zeros.

    Raises ModelError before calibration, where the backend does not train, and where nothing would.
    """
    trained = simulation.trained_model()
    simulation.require_calibrated()
    graph, plan, read = simulation.graph, simulation.plan, simulation.model.weight
    modes.check(graph, plan)
    check_formats(graph, plan, read)
    simulation.relate()
    encodings = simulation.model.encodings()
    sparse = sparse_sites(graph, plan, encodings.keys(), read) if keep_zeros else ()
    for sentence in zeros_to_tell(graph, plan, encodings, read) if keep_zeros else ():
        warn(sentence, UserWarning)
    simulation.is_trained = True
    trained.learn(learned_grids(graph, plan, encodings, modes, simulation.frozen), sparse)
    if not trained.grid_parameters and not trained.weight_parameters:
        raise ModelError(
            "nothing would train: every parameter of the model is frozen, and no grid is learned. Unfreeze some "
            "before the model is opened (requires_grad, trainable; is_trainable=True for peft), or learn grids"
        )
