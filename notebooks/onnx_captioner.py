"""Caption photographs with the graphs of `captioning export format=onnx`, by onnxruntime and numpy alone.

    python onnx_captioner.py mine_onnx dog.jpg … > captions.json      COCO's results format; Pillow reads photographs
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

START, END, UNKNOWN = 1, 2, 3  # <start>, <end> and <unk> among the words


def run(graph, tensors):
    """Feed a graph with the tensors that it names; a step's next state becomes the state."""
    given = {part.name: tensors[part.name] for part in graph.get_inputs()}
    names = [part.name.removeprefix("next.") for part in graph.get_outputs()]
    return dict(zip(names, graph.run(None, given), strict=True))


class Captioner:
    def __init__(self, folder):
        self.about = json.loads(Path(folder, "captioner.json").read_text(encoding="utf-8"))
        files = {path.stem: path for path in Path(folder).glob("*.onnx")}  # backbone, encoder, step
        self.graphs = {name: onnxruntime.InferenceSession(path) for name, path in files.items()}

    def features(self, path):
        height, width = self.about["image_size"]
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
        # Transparent pixels have colours too, which nobody sees.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))  # (H, W, 3) bytes
        return run(self.graphs["backbone"], {"images": pixels.transpose(2, 0, 1)[None]})

    def greedy(self, features, max_words=20):
        """Choose the most probable word at every step; `features` and possibly `mask` are of one image."""
        tensors, tokens = run(self.graphs["encoder"], features), [START]
        while tokens[-1] != END and len(tokens) <= max_words:
            tensors |= run(self.graphs["step"], tensors | {"tokens": np.array(tokens[-1:])})
            tensors["log_probs"][:, UNKNOWN] = -np.inf
            tokens.append(int(tensors["log_probs"][0].argmax()))
        return tokens[1:]

    def beam(self, features, beam_size=5, max_words=20):
        """Search the caption of the highest mean log-probability, as `decoding=beam` does."""
        tensors, running, ended = run(self.graphs["encoder"], features), [(0.0, [START])], []
        for step in range(max_words):
            last = np.array([tokens[-1] for _, tokens in running])
            tensors |= run(self.graphs["step"], tensors | {"tokens": last})
            tensors["log_probs"][:, UNKNOWN] = -np.inf
            totals = np.array([total for total, _ in running])[:, None] + tensors.pop("log_probs")  # (K, V)
            best = [divmod(int(place), totals.shape[1]) for place in np.argsort(-totals, axis=None)[:beam_size]]
            new = [(totals[row, word], [*running[row][1], word], row) for row, word in best]
            # Captions that have ended keep a place only while it is among the best by log-probability.
            kept = sorted([*ended, *new], key=lambda caption: -caption[0])[:beam_size]
            ended = [caption for caption in kept if caption[1][-1] == END]
            new = [caption for caption in kept if caption[1][-1] != END]
            highest = max((total / len(tokens[1:]) for total, tokens, _ in ended), default=-np.inf)
            if not new or new[0][0] / max_words <= highest:
                break
            running = [(total, tokens) for total, tokens, _ in new]
            tensors = {name: part[[row for *_, row in new]] for name, part in tensors.items()}
        return max(ended or new, key=lambda caption: caption[0] / len(caption[1][1:]))[1][1:]

    def text(self, tokens):
        joining = self.about["joining"]  # words, characters and subwords put spaces at different places
        text = joining["separator"].join(self.about["words"][token] for token in tokens if token != END)
        for pattern, replacement in joining["replace"]:
            text = re.sub(pattern, replacement, text)
        return text.strip()


if __name__ == "__main__":
    captioner = Captioner(sys.argv[1])
    texts = {path: captioner.text(captioner.beam(captioner.features(path))) for path in sys.argv[2:]}
    print(json.dumps([{"image_id": name, "caption": text} for name, text in texts.items()], indent=0))
