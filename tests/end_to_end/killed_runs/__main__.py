"""``python -m killed_runs --count 50``, in ``tests/end_to_end``: the figures of docs/reliability.md."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from killed_runs.trials import fresh, run_trials

VERBS = ("quantize", "calibrate", "export", "save")


def main() -> None:
    """Run, print a table and all problems; exit with 1 if there was one."""
    parser = argparse.ArgumentParser(description="Kill verbs at random moments and look at their files.")
    parser.add_argument("--count", type=int, default=50, help="kills of each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=VERBS, default=None)
    options = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="isobit-killed-") as name:
        for verb in VERBS:
            if options.only in (None, verb):
                outcomes.append(run_trials(verb, options.count, fresh(Path(name) / verb), options.seed))
    problems = [f"{outcome.verb}: {problem}" for outcome in outcomes for problem in outcome.problems]
    print("\n".join(problems))
    print("| Verb | Killed | Over before | Left hidden files until the next run | Most batches lost | Problems |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for o in outcomes:
        print(f"| {o.verb} | {o.killed} | {o.finished} | {o.left} | {o.most_lost} | {len(o.problems)} |")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
