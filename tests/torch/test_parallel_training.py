"""The simulator in DistributedDataParallel: two processes train what one does."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

import numpy as np

from isobit_torch.simulate.quantizers import QUANTIZERS

DDP = """
import sys
import numpy as np, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from isobit.quantsim import QuantSim

try:
    import peft
except ImportError:
    peft = None

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def adapted():
    model = peft.get_peft_model(Small(), peft.LoraConfig(r=2, target_modules=["conv", "fc"]))
    model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["conv", "fc"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model

def gradients(model, module, x, y):
    module.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
images, labels = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
saved = {}

def opened(module):
    sim = QuantSim(module.eval(), images, weights="int4")
    sim.calibrate([images], "minmax", progress=False)
    return sim

def train(case, sim, differs):
    sim.trainable()
    single = gradients(sim.model, sim.model, images, labels)
    if rank:
        with torch.no_grad():
            sim.model.get_parameter(differs).zero_()  # DDP gives every rank the parameters of the first
    sim.model.zero_grad()
    model = DistributedDataParallel(sim.model)
    averaged = gradients(model, sim.model, images[rank * 4 : rank * 4 + 4], labels[rank * 4 : rank * 4 + 4])
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    after = {k: v.detach() for k, v in sim.model.named_parameters() if k in averaged}
    for kind, values in (("grad", averaged), ("single", single), ("after", after)):
        saved.update({f"{case}/{kind}/{name}": value.numpy().copy() for name, value in values.items()})

distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
train("plain", opened(Small()), "fc.weight")
if peft is not None:
    sim = opened(adapted())
    base = [sim.encodings[placement.site] for placement in sim.plan.of_kind("weight")]
    train("lora", sim, "base_model.model.fc.lora_A.default.weight")
    sim.adapters.use("second")
    train("second adapter", sim, "base_model.model.fc.lora_A.second.weight")
    assert base == [sim.encodings[placement.site] for placement in sim.plan.of_kind("weight")]
distributed.destroy_process_group()
np.savez(f"{folder}/{rank}.npz", **saved)
"""


def test_distributed_data_parallel(tmp_path) -> None:
    """Two processes with half of the batch each: the same gradients as one process with all of it.

    For each of two adapters (LoRA) on one base too, where peft is installed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "train.py"
    script.write_text(DDP)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port, str(tmp_path)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    cases = ["plain", "lora", "second adapter"] if importlib.util.find_spec("peft") else ["plain"]
    for case in cases:
        names = [key.split("/")[-1] for key in first if key.startswith(f"{case}/grad/")]
        assert any(name.startswith(QUANTIZERS) for name in names)
        assert case == "plain" or {name.split(".")[-2] for name in names if "lora" in name} == {
            "second" if case == "second adapter" else "default"
        }
        for name in names:
            np.testing.assert_array_equal(first[f"{case}/grad/{name}"], second[f"{case}/grad/{name}"])
            np.testing.assert_array_equal(first[f"{case}/after/{name}"], second[f"{case}/after/{name}"])
            single = first[f"{case}/single/{name}"]
            np.testing.assert_allclose(
                first[f"{case}/grad/{name}"], single, atol=1e-3 * np.abs(single).max(), err_msg=f"{case}: {name}"
            )
