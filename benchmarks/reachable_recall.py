"""A finished run on a generated world against the best ranking that there is of the same test conversions.

    conversion-retrieval generate --output data
    python -m pipelines run --data data --registry registry --output runs    # or the stages by hand
    python benchmarks/reachable_recall.py --data data --features features --spec spec --evaluation evaluation

``--data`` is the generated directory with ``truth/`` in it; the others are the run's artifacts. Of an ablation, give
``--variant ABLATION/variants/NAME`` for ``--evaluation``, with the features and spec below ``ABLATION/features``.
Prints recall@k of the model and of the true probabilities, and their ratio, each with its bootstrap interval.
"""

import argparse
from pathlib import Path

from conversion_retrieval.evaluation.crossed_bootstrap import Interval
from conversion_retrieval.evaluation.reachable import compare_with_truth


def show(interval: Interval) -> str:
    """A value with its bounds."""
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "features", "spec"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--evaluation", type=Path, help="of a run")
    judged.add_argument("--variant", type=Path, help="of an ablation")
    parser.add_argument("--model", default="candidate", help="whose ranks: candidate, champion or a baseline")
    parser.add_argument("--ks", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    found = compare_with_truth(
        data_dir=options.data,
        features_dir=options.features,
        spec_dir=options.spec,
        evaluation_dir=options.evaluation or options.variant,
        kind="evaluation" if options.evaluation else "variant",
        ks=options.ks,
        model=options.model,
    )
    print("| k | recall | best reachable | ratio |\n|---|---|---|---|")
    for row in found:
        print(f"| {row.k} | {show(row.model)} | {show(row.best)} | {show(row.ratio)} |")


if __name__ == "__main__":
    main()
