"""toolkit/train.py with a stand-in for the evaluation: `--failing PROCESS:STEP` beside its own options.

That process fails in the evaluation of that step. Each writes OUT_DIR/evaluated_K.json: the steps it evaluated at.
"""

import json
import os
import sys
from pathlib import Path

from tests.evaluating import FakeEvaluator, evaluating
from toolkit import train
from toolkit.command_line import run
from toolkit.config import ResolvedConfig


def main() -> None:
    where = sys.argv.index("--failing")
    process, step = sys.argv[where + 1].split(":")
    del sys.argv[where : where + 2]
    rank = os.environ.get("RANK", "0")

    def fail() -> None:
        if rank == process:
            raise MemoryError("of process " + rank)

    fake = FakeEvaluator(at={int(step): fail})
    out_dir = Path(sys.argv[sys.argv.index("--out_dir") + 1])
    with evaluating(fake):
        run(train.main, ResolvedConfig)
    (out_dir / f"evaluated_{rank}.json").write_text(json.dumps(fake.calls))


if __name__ == "__main__":
    main()
