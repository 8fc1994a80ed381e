"""A child process that opens mutated files one by one and says on standard output what became of each."""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

#: Bytes of address space beyond those that the process has at its start.
_HEADROOM = 6 << 30


def main() -> None:
    """Open the cases of standard input; arguments are the folder of seeds and one to write in."""
    from mutated_files.cases import Case, write_case
    from mutated_files.doors import Doors

    from isobit.errors import IsobitError

    warnings.simplefilter("ignore")
    folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    seeds = {
        kind: [folder / p for p in paths] for kind, paths in json.loads((folder / "seeds.json").read_text()).items()
    }
    doors = Doors(folder)
    doors.sim()
    _limit()
    signal.signal(signal.SIGALRM, _late)
    for kind, number in json.load(sys.stdin):
        path = write_case(Case(kind, number), seeds, scratch)
        _say({"start": [kind, number]})
        before, started, outcome, trace = _resident("VmRSS"), time.perf_counter(), "opened", ""
        _forget_peak()
        signal.alarm(60)
        try:
            doors.open(kind, path)
        except IsobitError as error:
            outcome, trace = "refused", str(error)
        except BaseException as error:
            outcome, trace = f"raw {type(error).__name__}", traceback.format_exc()
        signal.alarm(0)
        seconds, memory = time.perf_counter() - started, _resident("VmHWM") - before
        _say({"case": [kind, number], "outcome": outcome, "text": trace, "seconds": seconds, "bytes": max(0, memory)})


def _say(message: object) -> None:
    print(json.dumps(message), flush=True)


def _late(number: int, frame: object) -> None:
    raise TimeoutError("60 seconds are over")


def _limit() -> None:
    size = _resident("VmSize") + _HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _resident(field: str) -> int:
    """Bytes of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0


def _forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
