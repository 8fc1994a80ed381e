"""Long runs over random models: what fails, and the figures of docs/reliability.md.

python tests/random_models/measure.py --graphs 2000 --modules 400 --journal random.jsonl --write
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import Figures, Journal, Outcome

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- random models: begin -->", "<!-- random models: end -->"


def main() -> None:
    """Run what was asked for and print what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=0)
    parser.add_argument("--modules", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--journal", type=Path, help="a file to go on from: seeds without a problem are not run again")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    rows = []
    if arguments.graphs:
        from check_case import check_graph
        from draw_graph import draw_graph

        seeds = range(arguments.first, arguments.first + arguments.graphs)
        rows.append(("ONNX graphs", measured("ONNX graphs", seeds, draw_graph, check_graph, journal)))
    if arguments.modules:
        sys.path[:0] = [str(TESTS / folder) for folder in ("torch", "agreement")]
        from check_module import check_module
        from draw_module import draw_module

        seeds = range(arguments.first, arguments.first + arguments.modules)
        rows.append(("PyTorch modules", measured("PyTorch modules", seeds, draw_module, check_module, journal)))
    if arguments.write:
        text = PAGE.read_text("utf-8")
        table = f"{BEGIN}\n{as_table(rows)}\n{END}"
        PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), "utf-8")
    print(as_table(rows))


def measured(
    sort: str, seeds: range, draw: Callable[[int], Any], check: Callable[[Any, Path], Outcome], journal: Journal
) -> Figures:
    """The figures of many seeds; every problem is printed as it is found."""
    figures, start = Figures(), time.perf_counter()
    for seed in seeds:
        outcome = journal.known(sort, seed)
        if outcome is None:
            case = draw(seed)
            with tempfile.TemporaryDirectory() as folder:
                outcome = check(case, Path(folder) / "out")
            journal.add(sort, outcome)
            for kind, text in outcome.problems:
                print(f"{seed} [{kind}] {text[:600]}\n    {case.settings}", flush=True)
        figures.count(outcome)
    print(f"{time.perf_counter() - start:.0f} s, {dict(figures.problems)}", file=sys.stderr)
    return figures


def as_table(rows: list[tuple[str, Figures]]) -> str:
    """The figures in Markdown, one column for each sort of model."""
    counted = [figures for _, figures in rows]

    def problems(*starts: str) -> list[str]:
        return [str(sum(n for kind, n in f.problems.items() if kind.startswith(starts))) for f in counted]

    lines: list[tuple[str, list[str]]] = [
        ("models", [str(f.cases) for f in counted]),
        ("kinds of operations in them", [str(len(f.kinds)) for f in counted]),
        ("raw exceptions", problems("raw")),
        ("refused by isobit", problems("refused by")),
        ("opened model is not the given one", problems("opened")),
        ("files that onnxruntime does not load or run", problems("refused at", "refused with session", "a session")),
        ("outputs of another name or shape", problems("outputs", "another")),
        ("file is the simulator, bit for bit", [str(f.bits["equal"]) for f in counted]),
        ("file is the simulator up to a rounding tie", [str(f.bits["ties"]) for f in counted]),
        ("file differs otherwise", [str(f.bits["different"]) for f in counted]),
        ("default session within 40 dB of the simulator", [f"{f.default_sessions(40):.0%}" for f in counted]),
    ]  # fmt: skip
    head = [f"| | {' | '.join(name for name, _ in rows)} |", f"| --- |{' ---: |' * len(rows)}"]
    return "\n".join([*head, *(f"| {what} | {' | '.join(values)} |" for what, values in lines)])


if __name__ == "__main__":
    main()
