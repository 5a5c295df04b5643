"""Which options of an evaluation go together, checked before any work is done."""

from collections.abc import Mapping
from typing import Any

from captioning.errors import InputError
from captioning.evaluation.scoring import check_metrics


def compared_files(compare: Any) -> tuple[list[str], list[str]]:
    """Return the result files of the two systems or settings that `compare=` names.

    Raises:
        InputError: it names something else than two files, or two lists of several files.
    """
    pair = [] if isinstance(compare, str) else list(compare)
    lists = [list(side) if isinstance(side, list | tuple) else [side] for side in pair]
    counts = [len(side) for side in lists]
    if len(pair) != 2 or not all(side and all(side) for side in lists) or (1 in counts and max(counts) > 1):
        raise InputError(
            f"compare={compare} must be a list of two files: compare=[a.json,b.json]; or of two lists, with "
            "the files of several runs of each setting: compare=[[a0.json,a1.json],[b0.json,b1.json]]"
        )
    return lists[0], lists[1]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `conf/evaluate.yaml`, as plain values, that do not go together.

    Raises:
        InputError: names them and the remedy.
    """
    results, compare, people = options["results"], options["compare"], options["people"]
    if (results and compare) or (people and (results or compare)):
        raise InputError(
            "results= scores files, compare= makes a page of two, and people=true scores the references; "
            "give one of them"
        )
    if not (results or compare or people or options["checkpoint"]):
        raise InputError(
            "nothing to evaluate: give checkpoint=…, results=a.json, compare=[a.json,b.json] or people=true"
        )
    if compare:
        compared_files(compare)
    if options["references"] and not (results or compare or people):
        raise InputError(
            "references= goes with results=, compare= or people=true; a checkpoint brings its own, or give "
            "data="
        )
    if isinstance(options["references"], list):
        raise InputError(f"references={options['references']} has several files; give one")
    metrics = options["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else list(metrics or [])
    check_metrics(metrics)
    for name, least in (("page_images", 0), ("resamples", 1)):
        if type(options[name]) is not int or options[name] < least:
            raise InputError(f"{name}={options[name]} must be a whole number from {least}")
    # BLEU is four metrics on the page; the others come up four times here, which does no harm.
    names = [f"bleu_{n}" if metric == "bleu" else metric for metric in metrics for n in range(1, 5)]
    if compare and options["page_images"] and options["page_metric"] not in names:
        choice = ", ".join(dict.fromkeys(names))
        raise InputError(f"page_metric={options['page_metric']} is not scored here; it is one of {choice}")
