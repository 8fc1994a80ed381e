"""Long runs of random graphs: what fails, and the figures of docs/reliability.md.

python tests/random_models/measure.py --graphs 2000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from check_graph_case import check_graph_case
from draw_graph import draw_graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, help="where every failing case is written, one JSON a line")
    arguments = parser.parse_args()
    kinds: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    start = time.perf_counter()
    out = arguments.out.open("w") if arguments.out else None
    for seed in range(arguments.first, arguments.first + arguments.graphs):
        case = draw_graph(seed)
        ops.update(set(case.ops))
        with tempfile.TemporaryDirectory() as folder:
            outcome = check_graph_case(case, Path(folder) / "out")
        totals.update(equal=outcome.equal, ties=outcome.ties, quantized=outcome.quantized, cases=1)
        kinds.update({kind for kind, _ in outcome.problems})
        for kind, text in outcome.problems:
            print(f"{seed} opset {case.opset} [{kind}] {text[:600]}\n   {case.settings}", flush=True)
            if out:
                out.write(json.dumps({"seed": seed, "kind": kind, "text": text, "settings": str(case.settings)}) + "\n")
                out.flush()
    print(dict(totals), f"{time.perf_counter() - start:.0f} s", f"{len(ops)} ops")
    print(dict(kinds))


if __name__ == "__main__":
    main()
