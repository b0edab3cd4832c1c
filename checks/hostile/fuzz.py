"""A coverage-guided fuzzer (atheris, which is libFuzzer) on ingest's decoders, judged by `checks.hostile.oracle`.

`python -m checks.hostile.fuzz FOLDER… [-max_total_time=60 -seed=1 …]`: the arguments are libFuzzer's own. It writes
the inputs that it finds to the first folder. It writes a wrong input to `crash-…` and prints it.
"""

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["ingest", "json", "checks.hostile.oracle"]):
    from checks.hostile.oracle import judge


def main() -> None:
    """Fuzz until stopped; the process ends with libFuzzer's exit status."""
    # -merge=1 runs the first argument again in a shell.
    again = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    atheris.Setup([again, *sys.argv[1:]], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
