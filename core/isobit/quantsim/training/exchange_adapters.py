"""Adapters of a simulator: which there are, which one is in the model, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isobit.backend.optional import HoldsAdapters
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import IsobitWarning, ModelError, did_you_mean
from isobit.graph.sites import Site, Weight
from isobit.placement.plan import constant_name
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.adapter_files import AdapterFiles, base_digest
from isobit.quantsim.training.trained_weights import adapter_constants
from isobit.warn import warn

Arrays = Mapping[str, NDArray[Any]]


class Adapters:
    """The adapters (LoRA) beside the quantized base of a model; `sim.adapters` is one.

    An adapter takes the place of another without calibration: the base keeps its weights and their grids. What training
    has learned of activations beside an adapter comes back with it.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters whose weights the model holds; none where it has no adapters."""
        model = self._simulation.model.inner
        return tuple(model.adapters) if isinstance(model, HoldsAdapters) else ()

    @property
    def active(self) -> str | None:
        """The one that is in the model."""
        return self._model.adapter if self.names else None

    def use(self, name: str) -> None:
        """Put another adapter in the place of the one that is in the model; the base stays as it is.

        Only its weights train from now on, so call `trainable`, and make the optimizer, anew. Raises ModelError for an
        unknown adapter, and for one of other layers than the one in the model.
        """
        model, known = self._model, self._known(name)
        if known == model.adapter:
            return
        self._simulation.beside_adapters[str(model.adapter)] = self._own_encodings()
        self._simulation.note_training()
        self._simulation.model.use_adapter(known)
        self._simulation.exchanges.append((len(self._simulation.edits), known))
        self._simulation.take_exchanged(self._simulation.beside_adapters.get(known, {}))
        bare = self._simulation.plan.placements.keys() - self._simulation.encodings.keys()
        if bare and self._simulation.calibration is not None:
            warn(
                f"{len(bare)} tensors to quantize have no encoding beside the adapter {known!r}, "
                f"{min(map(str, bare))!r} among them: calibrate again. If they are the adapter's, its rank is likely "
                "not below the channels of its convolution, and so it is a part of the model: a lower rank avoids that",
                IsobitWarning,
            )

    def save(self, folder: str | PathLike[str], name: str | None = None) -> list[Path]:
        """Write one adapter alone (None: the one in the model) as its library reads it, and its encodings.

        ``adapter_model.safetensors`` and ``adapter_config.json`` are peft's own layout; ``encodings.json`` has the
        grids of activations beside it, and of its weights where they have a format. Returns the paths.
        """
        model, known = self._model, self._known(name)
        own = self._own_encodings() if known == model.adapter else self._simulation.beside_adapters.get(known, {})
        names = model.adapter_constants(known)
        encodings = Encodings({_renamed(site, names): encoding for site, encoding in own.items()})
        base = self._base()
        weights = self._compensated(known, model.adapter_weights(known), by=-1)
        files = AdapterFiles(weights, model.adapter_settings(known), encodings, base)
        return files.write(Path(fspath(folder)))

    def load(self, folder: str | PathLike[str], name: str | None = None) -> None:
        """Give an adapter (None: the one in the model) the weights of a folder that `save`, or peft, has written.

        Its encodings come along where it has some. Raises ModelError, and changes nothing, for an adapter that was made
        for another base: for other layers, of other sizes, or beside other weights.
        """
        model, known = self._model, self._known(name)
        files = AdapterFiles.read(Path(fspath(folder)))
        where = f"the adapter in {fspath(folder)}"
        check_fits(files.weights, model.adapter_weights(known), where)
        if files.base and files.base != self._base():
            raise ModelError(
                f"{where} was trained beside another base, whose weights differ: open the model that it was made for"
            )
        model.set_adapter_weights(known, self._compensated(known, files.weights, by=1), files.settings)
        names = {own: graph for graph, own in model.adapter_constants(known).items()}
        learned = {_renamed(site, names): encoding for site, encoding in files.encodings.items()}
        if known == model.adapter:
            self._simulation.take_exchanged(learned, forgotten=self._own_constants())
        else:
            self._simulation.beside_adapters[known] = learned

    # --- inside ----------------------------------------------------------------------------------------------------

    @property
    def _model(self) -> HoldsAdapters:
        model = self._simulation.model.inner
        if not isinstance(model, HoldsAdapters) or not model.adapters:
            raise ModelError(
                "the model has no adapters: wrap it with peft.get_peft_model (Keras: layer.enable_lora) before it is "
                "opened"
            )
        return model

    def _known(self, name: str | None) -> str:
        model = self._model
        wanted = str(model.adapter) if name is None else name
        if wanted not in model.adapters:
            raise ModelError(
                f"the model has no adapter {wanted!r}{did_you_mean(wanted, model.adapters)}; it has "
                f"{', '.join(model.adapters)}: add it to the float model (peft: add_adapter) before that is opened"
            )
        return wanted

    def _compensated(self, name: str, weights: Arrays, *, by: int) -> Arrays:
        """Weights by their names in a file, with (1) or without (-1) what makes up for quantization here."""
        done = self._simulation.model.compensations
        changes = {
            own: done[constant].after - done[constant].without(done[constant].after)
            for constant, own in self._model.adapter_constants(name).items()
            if constant in done
        }
        return {own: value + by * changes[own] if own in changes else value for own, value in weights.items()}

    def _own_constants(self) -> set[Site]:
        """The sites of the weights of the adapter in the model."""
        graph, names = self._simulation.graph, self._model.adapter_constants(str(self._model.adapter))
        placements = self._simulation.plan.placements.values()
        return {p.site for p in placements if p.kind != "activation" and constant_name(graph, p.site) in names}

    def _own_encodings(self) -> dict[Site, Encoding]:
        """What goes with the adapter in the model: the grids of activations, and of its own weights."""
        placements, own = self._simulation.plan.placements, self._own_constants()
        simulated = self._simulation.model.encodings()
        return {s: e for s, e in simulated.items() if s in own or placements[s].kind == "activation"}

    def _base(self) -> str:
        """One hash of the weights of the base."""
        return base_digest(self._simulation.fingerprint(), adapter_constants(self._simulation.model))


def _renamed(site: Site, names: Mapping[str, str]) -> Site:
    """The site of a constant under another name."""
    return Weight(names[site.name]) if isinstance(site, Weight) and site.name in names else site


def check_fits(given: Arrays, wanted: Arrays, where: str) -> None:
    """Raise ModelError that says what of an adapter does not fit the model."""
    missing, odd = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or odd:
        said = [f"{len(missing)} weights are missing, {missing[0]!r} among them"] if missing else []
        said += [f"{len(odd)} have no place, {odd[0]!r} among them"] if odd else []
        raise ModelError(f"{where} is for another base, or for other layers of it: {'; '.join(said)}")
    for name, array in given.items():
        if array.shape != wanted[name].shape:
            raise ModelError(
                f"{where} is for another base, or of another rank: {name!r} has shape {array.shape}, and the model's "
                f"has {wanted[name].shape}; add an adapter of that rank to the float model before it is opened"
            )
