"""Plans Snakemake commands, many in one process: most of a dry run's time is imports.

Reads lists of arguments as JSON from standard input, in the folder where they are to be planned; writes the exit code
and the output of each to standard output.
"""

import json
import os
import sys
import tempfile

from snakemake.cli import main


def planned(arguments: list[str]) -> tuple[int, str]:
    """Makes a dry run in a process of its own; returns its exit code and what it said."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            code = exit_code([*arguments, "--dry-run", "--quiet", "rules"])
            sys.stdout.flush()
            sys.stderr.flush()
            # Python takes as long to clear up as Snakemake to plan.
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode()


def exit_code(arguments: list[str]) -> int:
    """Runs Snakemake in this process."""
    try:
        main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)
    exit_code(["--dry-run", "--quiet", "all"])  # imports what all of them would
    with os.fdopen(answers, "w") as stream:
        json.dump([planned(arguments) for arguments in json.load(sys.stdin)], stream)
