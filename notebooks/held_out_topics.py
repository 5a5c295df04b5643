"""How well a topic-guided model predicts topics of images it never saw.

    python -m benchmarks.held_out_topics runs/topic_guided/<time> [--split val] [--passes 10] [--seed 0]

Fits the training captions' topics again as the objective did (give its `passes` and `seed`, and
--keep-stop-words, where they were not the defaults: a checkpoint does not tell its objective), infers those
of the held-out images from their captions (they serve as truth here and nowhere else), and prints, for the
model's prediction and for the mean topic of the training images as the reference: KL(theta || prediction) in
nats, and how often the most probable topics agree.
"""

import argparse

import numpy as np
import torch

from captioning import checkpoint
from captioning.data.topics import TopicModel


@torch.no_grad()
def predict(loaded: checkpoint.Loaded, datamodule, split: str) -> np.ndarray:
    batches = datamodule.image_dataloader(split, sealed=True)
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
    loaded = checkpoint.load(checkpoint.locate(options.checkpoint, ("best.ckpt", "last.ckpt")))
    said, topics = loaded.description, loaded.model.topic_head[-1].out_features
    datamodule = checkpoint.build(said["data"], words=loaded.vocabulary.words)
    datamodule.setup()
    training = [record.captions for record in datamodule.split("train")]
    fitted = {"passes": options.passes, "seed": options.seed, "stop_words": not options.keep_stop_words}
    model = TopicModel(training, loaded.vocabulary.words, num_topics=topics, **fitted)
    theta = model([record.captions for record in datamodule.split(options.split)])
    mean = np.broadcast_to(model(training).mean(0), theta.shape)
    print(f"{'':24s}{'KL':>8s}{'top-1':>12s}")
    report("predicted", theta, predict(loaded, datamodule, options.split))
    report("mean training topic", theta, mean)


if __name__ == "__main__":
    main()
