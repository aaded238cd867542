"""One command for every stage: python train.py stage=dpo; --help lists stages and settings."""

import signal
import sys

from amrs.config import ConfigError, help_text, parse


def main(argv: list[str]) -> int:
    """Refuse wrong settings at once; torch and lightning are imported only after that."""
    try:
        if (text := help_text(argv)) is not None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` reads no further
            print(text)
            return 0
        arguments = parse(argv)
    except ConfigError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        from amrs.runs import show_plan

        return show_plan(arguments.config)
    from amrs.runs import reuse

    if (status := reuse(arguments.config)) is not None:
        return status
    from amrs.stages import run

    return run(arguments.config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
