"""``python -m mutated_files --count 4000``, in ``tests/end_to_end``: the figures of docs/reliability.md."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutated_files.cases import SHARES, cases
from mutated_files.run_cases import prepare, run_cases


def main() -> None:
    """Run, print a table and every file that was not answered well; exit with 1 if there was one."""
    parser = argparse.ArgumentParser(description="Open mutated files and count what comes of them.")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", choices=list(SHARES), default=None)
    options = parser.parse_args()
    chosen = [case for case in cases(options.count, options.start) if options.only in (None, case.kind)]
    with tempfile.TemporaryDirectory(prefix="isobit-mutated-") as name, ThreadPoolExecutor(options.processes) as pool:
        folder = Path(name)
        prepare(folder / "seeds")
        parts = [chosen[start :: options.processes] for start in range(options.processes)]
        runs = [pool.submit(run_cases, p, folder / "seeds", folder / f"scratch{i}") for i, p in enumerate(parts)]
        outcomes = [outcome for run in runs for outcome in run.result()]
    bad = [outcome for outcome in outcomes if not outcome.is_good]
    for outcome in bad:
        print(outcome)
    print("| Kind | Files | Opened | Refused | Raw exceptions | Crashes | Longest (s) | Most memory (MB) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in (*SHARES, "all"):
        part = [outcome for outcome in outcomes if kind in ("all", outcome.case.kind)]
        if not part:
            continue
        counts = Counter(outcome.outcome.split()[0] for outcome in part)
        numbers = [len(part), *(counts[key] for key in ("opened", "refused", "raw", "crash"))]
        sizes = [f"{max(o.seconds for o in part):.1f}", f"{max(o.memory for o in part) / 1e6:.0f}"]
        print(f"| {kind} | {' | '.join(map(str, [*numbers, *sizes]))} |")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
