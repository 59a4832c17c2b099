"""What two processes that serve one index file share of it, as the kernel counts: Rss and Pss of the mapping.

Pss is a process's share of its resident pages, each page divided by how many processes have it. What is private to a
process counts whole; what two processes share counts half.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

# A process of its own: the parent must not be counted among those that have the pages.
_WORKER = """
import sys
import numpy as np
import orjson
from pathlib import Path
from retrieval.quantised import QuantisedIndex
from simulators.benchmarks.sharing import resident_kb

path, dimension, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
queries = np.frombuffer(sys.stdin.buffer.read(4 * dimension * int(sys.argv[4])), np.float32).reshape(-1, dimension)
before = resident_kb()
index = QuantisedIndex.load(path, dimension=dimension, n=n, metric="ip")
for query in queries:
    index.search(query, min(n, 1000))
print("searched", flush=True)
sys.stdin.buffer.read(1)
kept = {"file": resident_kb(path), "grown": {name: kb - before[name] for name, kb in resident_kb().items()}}
print(orjson.dumps(kept).decode(), flush=True)
sys.stdin.buffer.read(1)
"""


def measure_sharing(path: Path, *, dimension: int, n: int, queries: NDArray[np.float32]) -> dict[str, float]:
    """Let two processes load the file of a quantised index, search, and say what is resident in the second one.

    Returns:
        In MB: Rss and Pss of the mapped file, and by how much Rss and Pss of the process grew over loading and
        searching.
    """
    command = [sys.executable, "-c", _WORKER, str(path), str(dimension), str(n), str(len(queries))]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for worker in workers:
            _tell(worker, np.ascontiguousarray(queries, dtype=np.float32).tobytes())
        for worker in workers:
            _hear(worker)
        answers = []
        for worker in workers:
            _tell(worker, b"\n")
            answers.append(orjson.loads(_hear(worker)))
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    last = answers[-1]
    return {
        f"{what}_{name}_mb": round(last[what][name] / 1024, 2) for what in ("file", "grown") for name in ("rss", "pss")
    }


def resident_kb(path: Path | None = None) -> dict[str, int]:
    """Return Rss and Pss of this process in KB, or of its mappings of one file."""
    kept = {"rss": 0, "pss": 0}
    within = path is None
    for line in Path("/proc/self/smaps" if path else "/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if path is not None and "-" in line.split(" ", 1)[0]:
            within = line.endswith(str(path))
        elif within and name.lower() in kept:
            kept[name.lower()] += int(rest.split()[0])
    return kept


def _tell(worker: subprocess.Popen[bytes], content: bytes) -> None:
    assert worker.stdin is not None
    worker.stdin.write(content)
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[bytes]) -> bytes:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that shares the index ended with {worker.wait()}")
    return line
