"""Runs command lines of esper, each in a fork of this process, which has imported everything once. It tests nothing.

Each line of standard input is JSON: the words, and the files for standard output and standard error. The exit code of
the command line, negative for a signal, is one line of standard output. Nothing has been computed here when a fork is
made, so that each one starts as a new process would.
"""

import json
import os
import sys
from importlib import import_module

import esper.cli.main

for later in ("esper.flow.in_process", "esper.testing", "scipy.special"):
    import_module(later)

for line in sys.stdin:
    words, *files = json.loads(line)
    if (child := os.fork()) == 0:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["esper", *words]
        esper.cli.main.main()  # leaves by SystemExit
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
