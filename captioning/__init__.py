"""Attention-based image captioning in PyTorch Lightning.

Read the package in the order in which the data flows:

    vocabulary      words <-> numbers
    features/       photographs -> frozen CNN or detector features -> an HDF5 cache
    data/           annotation files + cache -> batches
    models/         features + words so far -> scores of the next word; one file per family
    decoding/       a model -> captions: greedy, sampling, beam search
    metrics/        captions -> scores, pure text to numbers
    objectives/     (model, batch) -> loss; one file per training idea
    module          the LightningModule: steps, optimisers, validation captions
    attention_statistics    does attention look anywhere in particular?
    checkpoint      what a checkpoint says about itself
    retrieval       captions without a caption model, as baselines
    references      what captions are scored against
    results         captions in COCO's results format, with their scores
    comparison      two results side by side, as a page
    predictor       a checkpoint + a photograph -> a caption
    visualise       where the model looked, as pictures
    assembly        a composed config -> the parts of a training run
    training        what the trainer gets beside the module
    sweep           what a multirun prints at its end
    files           written whole or not at all
    extract train evaluate caption baseline demo      the commands
"""

__version__ = "0.1.0"
