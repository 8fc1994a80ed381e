"""Runs cases in child processes, so that a crash or an endless loop is one outcome among others."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutated_files.cases import Case
from mutated_files.seeds import write_seeds

MEMORY_LIMIT, TIME_LIMIT = 1 << 30, 10.0
_PATIENCE = 90.0  # seconds without a word from a child


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``opened``, ``refused`` by an IsobitError, ``raw <exception>`` or ``crash``."""

    case: Case
    outcome: str
    text: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def is_good(self) -> bool:
        """Whether it was opened or refused, in 10 s and 1 GB."""
        return self.outcome in ("opened", "refused") and self.seconds <= TIME_LIMIT and self.memory <= MEMORY_LIMIT

    def __str__(self) -> str:
        size = f"{self.seconds:.1f} s, {self.memory / 1e6:.0f} MB"
        return f"{self.case.kind} {self.case.number}: {self.outcome} ({size})\n{self.text}"


def prepare(folder: Path) -> None:
    """Write the seeds, and which there are."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = write_seeds(folder)
    described = {kind: [str(path.relative_to(folder)) for path in paths] for kind, paths in seeds.items()}
    (folder / "seeds.json").write_text(json.dumps(described))


def run_cases(cases: Sequence[Case], seeds: Path, scratch: Path) -> list[Outcome]:
    """Open every case in children, a new one after each that dies."""
    outcomes: list[Outcome] = []
    remaining = list(cases)
    while remaining:
        done = _run_child(remaining, seeds, scratch)
        if not done:
            said = (scratch.parent / f"{scratch.name}.stderr").read_text()
            raise RuntimeError(f"a worker did not get to its first file:\n{said}")
        outcomes += done
        remaining = remaining[len(done) :]
    return outcomes


def _run_child(cases: Sequence[Case], seeds: Path, scratch: Path) -> list[Outcome]:
    command = [sys.executable, "-m", "mutated_files.worker", str(seeds), str(scratch)]
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    outcomes: list[Outcome] = []
    with (
        (scratch.parent / f"{scratch.name}.stderr").open("wb") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(cases).encode())
        child.stdin.close()
        running: Case | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while selector.select(_PATIENCE) and (line := child.stdout.readline()):
                if not line.startswith(b"{"):  # a library in C, at a file without meaning
                    print(f"{running}: on standard output: {line.decode(errors='replace').rstrip()}", flush=True)
                    continue
                message = json.loads(line)
                if "start" in message:
                    running = Case(*message["start"])
                    continue
                running = None
                found = (message[key] for key in ("outcome", "text", "seconds", "bytes"))
                outcomes.append(Outcome(Case(*message["case"]), *found))
        if running is not None:
            child.kill()
        status = child.wait()
    if running is not None:
        outcomes.append(
            Outcome(running, "crash", f"the process ended with {status}, or said nothing for {_PATIENCE} s")
        )
    return outcomes
