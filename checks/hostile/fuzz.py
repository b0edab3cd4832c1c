"""A coverage-guided fuzzer (atheris, which is libFuzzer) on ingest's decoders, judged by `checks.hostile.oracle`.

`python -m checks.hostile.fuzz FOLDER… [-max_total_time=60 -seed=1 …]`: what follows is libFuzzer's own command line;
the first folder takes what it finds. An input that is wrong is written to `crash-…` and shown.
"""

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["ingest", "json", "checks.hostile.oracle"]):
    from checks.hostile.oracle import judge


def main() -> None:
    """Fuzz until told to stop; the process ends with libFuzzer's exit status."""
    # -merge=1 starts the first word again, by a shell.
    again = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    atheris.Setup([again, *sys.argv[1:]], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
