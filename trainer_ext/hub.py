"""The old spelling of `python run_publish.py`; it goes with the next release."""

import runpy

if __name__ == "__main__":
    runpy.run_module("run_publish", run_name="__main__", alter_sys=True)
