"""Run run_publish.py under its old name; this file will be removed in the next release."""

import runpy

if __name__ == "__main__":
    runpy.run_module("run_publish", run_name="__main__", alter_sys=True)
