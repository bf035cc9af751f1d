"""A longer fuzz of the policy reader and compiler, by hand: `python -m tests.fuzz.policy --seconds 60`.

With atheris installed (`pip install atheris`) inputs are chosen by the coverage that they reach, otherwise at random.
Prints counts; a failure ends it with the input's seed or file.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None


REPORT_SECONDS = 5.0


def pick_from(data: bytes) -> Callable[[int], int]:
    """Choices out of a fuzzer's bytes, zeros when they are used up."""
    left = list(reversed(data))

    def pick(bound: int) -> int:
        number = left.pop() if left else 0
        if bound > 256:
            number = number << 8 | (left.pop() if left else 0)
        return number % bound

    return pick


def report(counts: dict[str, int], began: float, how: str) -> None:
    """One line per count."""
    seconds = time.monotonic() - began
    print(f"policy fuzz, {how}: {seconds:.0f} s, no failure")
    for what, number in sorted(counts.items()):
        print(f"{number:>12,} {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs; 0 = a new one")
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reached new code (atheris only)")
    options = parser.parse_args()
    if atheris is None:
        at_random(options.seconds, options.seed or random.SystemRandom().randrange(1, 1 << 32))
    else:
        by_coverage(options.seconds, options.corpus)


def at_random(seconds: float, seed: int) -> None:
    """Mutate right documents, whichever."""
    from tests.fuzz.documents import as_text, mutated
    from tests.fuzz.target import Target

    target, began = Target(), time.monotonic()
    while time.monotonic() - began < seconds:
        chosen = random.Random(seed)
        document = mutated(chosen.randrange)
        try:
            target.document(document) if seed % 2 else target.text(as_text(document))
        except BaseException:
            print(f"failed with --seed {seed}: {as_text(document)[:4000]}", file=sys.stderr)
            raise
        seed += 1
    report(target.counts, began, f"at random, up to seed {seed}")


def by_coverage(seconds: float, corpus: Path | None) -> None:
    """Let libFuzzer choose: half of the inputs are text, half are choices of mutations."""
    with atheris.instrument_imports(include=["services.policy", "services.agent.calc", "services.agent.sources"]):
        from tests.fuzz.documents import SEEDS, as_text, mutated
        from tests.fuzz.target import Target

    target, began = Target(), time.monotonic()
    told = began

    def one(data: bytes) -> None:
        nonlocal told
        # libFuzzer ends the process by itself and says nothing to us, so the counts come as it goes.
        if time.monotonic() - told > REPORT_SECONDS:
            told = time.monotonic()
            report(target.counts, began, "by coverage")
            if told - began > seconds:
                os.kill(os.getpid(), signal.SIGTERM)
        if not data:
            return
        match data[0] % 4:
            case 0:
                target.text(data[1:].decode("utf-8", "replace"))
            case 1:
                target.text(as_text(mutated(pick_from(data[1:]))))
            case _:
                target.document(mutated(pick_from(data[1:])))

    folder = corpus or Path(os.environ.get("TMPDIR", "/tmp")) / f"ciliate-fuzz-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS):
        (folder / f"seed{number}").write_bytes(b"\0" + as_text(seed).encode())
    atheris.Setup(
        [sys.argv[0], str(folder), "-max_len=4096", f"-artifact_prefix={folder}/", "-print_final_stats=1"], one
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
