"""Small versions of well-known architectures through the whole way: open, calibrate, run, export, onnxruntime.

Writes docs/torch-models.md. Default target, batch norms folded, min-max calibration on other batches than those that
are measured. ``python docs/torch_models.py [NAME ...]`` measures these rows anew and keeps the others.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from torch_architectures import ARCHITECTURES, Batch
from torch_weights import awaken

import isobit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agreement"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "torch"))
from agreement import Comparison, Row, Sums
from executed import Executed

CALIBRATION, EVALUATION = range(100, 108), range(200, 203)
Arrays = dict[str, NDArray[Any]]


def like(example: Batch, seed: int, batch: int | None = None, length: int | None = None) -> Batch:
    """Another batch of the example's kind; `batch` and `length` change the sizes."""
    made = torch.Generator().manual_seed(seed)
    found: Batch = {}
    for name, x in example.items():
        shape = list(x.shape)
        shape[0] = shape[0] if batch is None else batch
        if length is not None and _is_sequence(x):
            shape[1] = length
        if name == "flattened_patches":  # the first two columns are positions
            found[name] = torch.cat(
                [x[:1, :, :2].expand(shape[0], -1, -1), torch.randn(*shape[:2], shape[2] - 2, generator=made)], -1
            )
        elif x.is_floating_point():
            found[name] = torch.randn(shape, generator=made)
        elif name.endswith("input_ids"):
            found[name] = torch.randint(3, 90, shape, generator=made)
        else:
            found[name] = torch.ones(shape, dtype=x.dtype)
            if name == "attention_mask":
                found[name][seed % shape[0], shape[1] - 3 :] = 0
    return found


def _is_sequence(x: torch.Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point()


def arrays(batch: Batch) -> Arrays:
    """The batch in NumPy."""
    return {name: tensor.numpy() for name, tensor in batch.items()}


def measure(name: str) -> Row:
    """Take one architecture the whole way."""
    torch.manual_seed(0)
    module, example = ARCHITECTURES[name]()
    awaken(module, [like(example, seed) for seed in CALIBRATION])
    evaluation = [like(example, seed) for seed in EVALUATION]
    sim = isobit.QuantSim(module, example)
    error = max(_float_error(sim, module, batch) for batch in evaluation)
    floats = ", ".join(dict.fromkeys(note.split(" at ")[0] for note in sim.graph.notes if "no mapping" in note))
    sim.apply(isobit.techniques.FoldBatchNorms())
    sim.calibrate([like(example, seed) for seed in CALIBRATION], progress=False)
    sums, integers = Sums(), Comparison()
    with tempfile.TemporaryDirectory() as folder:
        executed = Executed(sim, Path(folder))
        constants = executed.unequal_constants()
        for batch in evaluation:
            feeds = arrays(batch)
            mask = feeds.get("decoder_attention_mask" if "decoder_input_ids" in feeds else "attention_mask")
            sums.add(sim.run_float(batch), sim.run(batch), executed.run(feeds), mask, classes=_has_logits(sim))
            integers += executed.compare(feeds)
        resized = (_resizes(sim, executed, like(example, 300, batch=3)), "–")
        if any(_is_sequence(x) for x in example.values()):
            resized = (resized[0], _resizes(sim, executed, like(example, 301, length=9)))
    sizes = " / ".join(resized)
    return Row(len(sim.plan.placements), error, sums, integers, constants, floats or "none", sizes)


def _has_logits(sim: isobit.QuantSim) -> bool:
    return next(iter(sim.graph.outputs)) == "logits"


def _float_error(sim: isobit.QuantSim, module: torch.nn.Module, batch: Batch) -> float:
    """The largest difference of the opened model from the module, relative to the largest value."""
    with torch.no_grad():
        expected = module(**batch)
    key, found = next(iter(sim.run_float(batch).items()))
    wanted = expected[key].numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _resizes(sim: isobit.QuantSim, executed: Executed, batch: Batch) -> str:
    """Whether simulator and file run a batch of other sizes and agree."""
    try:
        simulated, plain = sim.run(batch), sim.run_float(batch)
        sums = Sums()
        sums.add(plain, simulated, executed.run(arrays(batch)), None, classes=_has_logits(sim))
    except Exception:
        return "fixed"
    return "yes" if sums.close else "differs"


def line(name: str) -> str:
    """One line of the table."""
    try:
        cells = measure(name).cells()
    except isobit.errors.IsobitError as error:
        cells = [f"no: {_plain(str(error))}", *[""] * 11]
    return f"| {name} | {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """An error as a cell: paths are this machine's own."""
    home = str(Path(transformers.__file__).parents[1])
    return " ".join(text.replace(f"{home}/", "").replace("|", "\\|").split())


def read_rows() -> dict[str, str]:
    """The rows of the page as it is, by architecture."""
    text = PAGE.read_text() if PAGE.exists() else ""
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    return {name: rows[name] for name in ARCHITECTURES if name in rows}


def write_page(rows: dict[str, str]) -> None:
    """The page with these rows, in the order of the list of architectures."""
    libraries = ((torch, "torch"), (transformers, "transformers"), (onnxruntime, "onnxruntime"))
    versions = ", ".join(f"{name} {library.__version__}" for library, name in libraries)
    table = "\n".join(rows[name] for name in ARCHITECTURES if name in rows)
    PAGE.write_text(f"{HEADER}\n{table}\n\nMade by docs/torch_models.py with {versions}.\n")


def main() -> None:
    """Measure the architectures named, or all; each row is written as soon as it is there."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or ARCHITECTURES:
        row = line(name)
        print(row, flush=True)
        write_page({**read_rows(), name: row})


PAGE = Path(__file__).with_name("torch-models.md")

COLUMNS = (
    "| architecture | works | sites | float error | simulator | onnxruntime | top-1 | quantizers | integers | off by "
    "| weights | dynamic | in float |"
)
RULE = "---|" * 13

HEADER = f"""# PyTorch architectures

Small versions of architectures from `transformers`, taken the whole way: opened, batch norms folded, calibrated
(min-max, 8 batches), run, exported to a QDQ model, and run in onnxruntime in float (`session.disable_quant_qdq`).
Measured on 3 other batches. Weights are random, but scaled so that every layer carries a signal
(docs/torch_weights.py says why): the figures show that simulator and file agree, not how accurate a trained model
stays. A deep random network with batch norms may amplify any noise: the outputs of MobileNetV1 in float keep 9 dB when
noise 40 dB below the signal, which is about what 8 bits make, is added to its images.

- **works**: each quantizer fed the same input gives at least 99.9 % equal integers and none off by more than 1, stored
  weights and biases are the simulator's, and end to end onnxruntime is 20 dB nearer to the simulator than the simulator
  is to the float model, or chooses the same class in 99.5 % of cases.
- **float error**: of the opened model against the module, relative to the largest value.
- **simulator**, **onnxruntime**: SQNR in dB, the simulator against the float model, onnxruntime against the simulator.
- **integers**: activation quantizers compared, share of equal integers, largest difference.
- **dynamic**: whether another batch size / another sequence length runs through simulator and file, and agrees.
- **in float**: operations without a mapping; they run as they are.

{COLUMNS}
|{RULE}"""


if __name__ == "__main__":
    main()
