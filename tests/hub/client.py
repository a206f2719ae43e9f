"""A user's process: runs the Python that comes as a JSON line on standard input, and answers with a JSON line.

One start of Python serves many requests. The environment (HF_ENDPOINT, HF_HOME, HF_TOKEN) is the starter's.
"""

import contextlib
import io
import json
import sys
import traceback

names: dict = {}
for line in sys.stdin:
    said, error = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            exec(json.loads(line), names)
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
            trace = traceback.format_exc()
    answer = {"said": said.getvalue(), "error": error, "trace": trace if error else None}
    print(json.dumps(answer), flush=True)
