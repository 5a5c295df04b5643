"""Attention-based image captioning in PyTorch Lightning.

    import captioning
    captioner = captioning.load("runs/flickr8k/...")
    captioner("dog.jpg").text

The package in the order in which the data flows:

    tokenizers      captions -> words, characters or subwords
    vocabulary      words <-> ids
    features/       photographs -> frozen networks -> an HDF5 cache
    data/           annotation files and cache -> batches
    models/         features and the words so far -> scores of the next word; one file per family
    decoding/       a model -> captions: greedy, sampling, beam search, ensembles
    metrics/        captions -> scores, text in and numbers out
    objectives/     (model, batch) -> loss; one file per training idea
    checkpoint      what is written beside the weights, and how a model comes back
    portable        the same in one file, with the weights of its backbone; the captioner inside the package
    graphs          a captioner as ONNX graphs
    predictor       a checkpoint and a photograph -> a caption
    training/       config -> run: assembly, the LightningModule, callbacks, sweeps
    evaluation/     references, scores, comparisons of captions and trainings, baselines, attention pictures
    page/           the page that `captioning app` serves
    cli/            what all commands share
    errors files    the one error for bad input; files written whole or not at all
    processes       several processes that run one command together

    train extract evaluate compare caption export app baseline demo  the commands: captioning train …
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Caption", "load"]


def __getattr__(name: str) -> Any:
    # Imported when first used: torch takes seconds, and `--help` does not need it.
    if name in __all__:
        from captioning import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
