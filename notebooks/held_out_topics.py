"""How well a topic-guided model predicts the topics of held-out images.

    python notebooks/held_out_topics.py runs/topic_guided/<time> [--split val] [--passes 10] [--seed 0]

Fits the topics of the training captions again as the objective did (give its `passes` and `seed`, and
--keep-stop-words, where they were not the defaults), and infers those of the held-out images from their
captions, which serve as truth here and nowhere else. It prints, for the model's prediction and for the mean
topic of the training images as the reference: KL(theta || prediction) in nats, and how often the most
probable topics agree.
"""

import argparse

import numpy as np
import torch

from captioning import checkpoint
from captioning.data import CaptionDataModule, TopicModel


@torch.no_grad()
def predict(loaded: checkpoint.Loaded, data: CaptionDataModule, split: str) -> np.ndarray:
    batches = data.image_dataloader(split, without_captions=True)
    logits = [loaded.model.encode(batch.features, batch.mask).topic_logits for batch in batches]
    return torch.cat(logits).softmax(-1).numpy()


def report(name: str, theta: np.ndarray, predicted: np.ndarray) -> None:
    kl = (theta * np.log(theta / predicted.clip(1e-9))).sum(1).mean()
    agreement = (theta.argmax(1) == predicted.argmax(1)).mean()
    print(f"{name:24s}{kl:8.3f}{100 * agreement:10.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--split", default="val")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-stop-words", action="store_true")
    options = parser.parse_args()
    loaded = checkpoint.load(checkpoint.locate(options.checkpoint, first=checkpoint.BEST))
    data = checkpoint.build_datamodule(loaded.metadata["data"], vocabulary=loaded.vocabulary)
    data.setup()
    training = [record.captions for record in data.split("train")]
    topics = TopicModel(
        training,
        loaded.vocabulary,
        num_topics=loaded.model.topic_head[-1].out_features,
        passes=options.passes,
        stop_words=not options.keep_stop_words,
        seed=options.seed,
    )
    theta = topics([record.captions for record in data.split(options.split)])
    mean = np.broadcast_to(topics(training).mean(0), theta.shape)
    print(f"{'':24s}{'KL':>8s}{'top-1':>12s}")
    report("predicted", theta, predict(loaded, data, options.split))
    report("mean training topic", theta, mean)


if __name__ == "__main__":
    main()
