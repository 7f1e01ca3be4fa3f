"""`python -m evaluation` several times by the same processes: torchrun ... evaluating_in_a_row.py OUT ARGUMENTS...

Each of ARGUMENTS is a JSON list. Process K writes OUT/printed_K.json: what each evaluation printed there.
"""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from evaluation.__main__ import listed, main
from evaluation.options import EvaluationOptions
from toolkit.command_line import parse

if __name__ == "__main__":
    printed = []
    for arguments in sys.argv[2:]:
        with redirect_stdout(io.StringIO()) as text:
            main(parse(EvaluationOptions, listed(json.loads(arguments))))
        printed.append(text.getvalue())
    (Path(sys.argv[1]) / f"printed_{os.environ['RANK']}.json").write_text(json.dumps(printed))
