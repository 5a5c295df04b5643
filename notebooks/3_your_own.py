# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Your own photographs, words, backbone, model, sweep, and a file to give away
#
# Everything in [1_the_post](1_the_post.ipynb) is exchangeable, and nothing of it needs a change to this package. This notebook
# exchanges one part after the other:
#
# 1. caption **a photograph of yours** with the captioner that comes along
# 2. train on **pictures and words of your own**: one table
# 3. with **a backbone of your own**: one class
# 4. and **a model of your own**: one class with four methods
# 5. **compare** settings in a sweep
# 6. **export** the best into one file
#
# The pictures "of your own" are drawn scenes again, written out as a folder and a table, so that the notebook runs anywhere. Put
# your table into `TABLE` to use yours.

# %%
# %matplotlib inline
import csv
import os
import subprocess
import sys
from pathlib import Path

from IPython.display import display

import captioning
from captioning.data import draw_toy, read_toy
from captioning.files import PHOTOGRAPHS

if Path.cwd().name == "notebooks":
    os.chdir("..")  # data/ and runs/ lie beside notebooks/, as for the commands
FAST = os.environ.get("CAPTIONING_NOTEBOOKS") == "fast"  # a few scenes and one epoch, to test that the cells run
FOLDER = Path(os.environ.get("CAPTIONING_NOTEBOOK_RUNS", "runs/notebooks")).absolute() / "3_your_own"
SCENES = {"train": 24, "val": 8} if FAST else {"train": 2000, "val": 100}
FOLDER.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## 1. A photograph of yours
#
# The package comes with a small captioner, trained on 6,000 photographs of people, dogs and outdoor scenes. It knows little else.

# %%
captioner = captioning.load()
caption = captioner(PHOTOGRAPHS / "dog.jpg", num_best=3)  # a path, bytes, a PIL image, an array, or a list of them
print(caption.text, f"({caption.log_prob:.1f} nats)")
for text, log_prob in caption.alternatives:
    print("   or:", text, f"({log_prob:.1f} nats)")
caption  # in a notebook a caption shows itself: hover over a word to see where the model looked

# %% [markdown]
# ## 2. Pictures and words of your own
#
# A table with the columns `image` and `caption`, a line for each caption; a column `split` if you want to choose it yourself. CSV, TSV and
# JSONL will do, and so does a folder in which `dog.txt` holds the captions of `dog.jpg`.

# %%
TABLE = FOLDER / "mine" / "captions.csv"
draw_toy(FOLDER / "mine" / "toy", SCENES, seed=1)
with TABLE.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption", "split"])
    for record in read_toy(FOLDER / "mine" / "toy", SCENES, seed=1):
        for text in record.captions:
            writer.writerow([record.path.relative_to(TABLE.parent), text, record.split])
print(*TABLE.read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## 3. A backbone of your own
#
# An extractor turns a picture into a grid of vectors. This one has no network at all: it cuts the picture into 8 × 8 patches and takes their
# pixels as they are. Replace it by whatever you have; regions, channels and grid are asked of it by a trial run (`measure`). The
# feature file records the class and its options and refuses to be mixed with others.
#
# ## 4. A model of your own
#
# Four methods. This one updates a GRU with the last word first, and then looks, by a dot product (Luong, Pham and Manning 2015). So its question
# has heard the last word; what that does to where it looks is in [2_attention](2_attention.ipynb).
#
# Both classes go into one file that Python can import.

# %%
CODE = '''
import math

import torch
from torch import nn

from captioning.features import FrozenExtractor
from captioning.models import CaptionModel, Step


class Patches(FrozenExtractor):
    """The pixels of each cell of a grid."""

    def __init__(self, *, image_size, side, state=None):
        super().__init__(image_size=image_size, side=side)
        self.set_normalisation([0.5] * 3, [0.5] * 3)
        self.network = nn.PixelUnshuffle(image_size[0] // side)  # no weights
        if state is not None:
            self.restore(state)
        self.measure()

    def forward(self, images):  # (B, 3, h, w) bytes
        return self.network(self.normalise(images)).permute(0, 2, 3, 1)  # (B, side, side, D)


class LookAfterReading(CaptionModel):
    """A GRU, then dot-product attention with its new state; memory: regions and mask, state: h."""

    def __init__(self, *, encoder, vocabulary_size, embedding_dim, hidden_dim):
        super().__init__()
        self.vocabulary_size, self.encoder = vocabulary_size, encoder
        self.project = nn.Sequential(
            nn.Linear(encoder.output_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.cell = nn.GRUCell(embedding_dim, hidden_dim)
        self.output = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, vocabulary_size)
        )

    def encode(self, features, mask=None):  # once per image
        return self.project(self.encoder(features)), mask  # (B, R, H)

    def start(self, memory):  # the state before the first word
        return torch.zeros_like(memory[0][:, 0])  # (B, H)

    def step(self, tokens, state, memory):  # one word (B,)
        regions, mask = memory
        state = self.cell(self.embedding(tokens), state)  # (B, H)
        scores = (regions @ state[..., None]).squeeze(-1) / math.sqrt(state.shape[-1])  # (B, R)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)  # (B, R)
        context = (weights[:, None] @ regions).squeeze(1)  # (B, H)
        return Step(hidden=torch.cat([state, context], -1), attention=weights, state=state)

    def head(self, hidden):  # (…, 2H) -> (…, V)
        return self.output(hidden)
'''
FILES = {
    "my_captioning.py": CODE,
    "my_conf/features/patches.yaml": """
# pixels of 8 × 8 patches, without a network
path: ${data_root}/features/${data.name}-patches.h5
extractor: {_target_: my_captioning.Patches, image_size: [64, 64], side: 8}
run: {batch_size: 64, num_workers: 0, autocast: false}
""",
    "my_conf/model/look_after_reading.yaml": """
# GRU, then dot-product attention with its new state
defaults: [{/encoder@encoder: raw}]
_target_: my_captioning.LookAfterReading
vocabulary_size: ???   # filled in
embedding_dim: 64
hidden_dim: 192
""",
}
for name, content in FILES.items():
    (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text(content.lstrip())

# %% [markdown]
# ## 5. Train, and compare settings
#
# From the command line, in that folder. `captioning train …` in a terminal is the same as `python -m captioning.train …`. With `-m` it trains once
# for each combination of the options that have several values, and compares the runs at the end. Here: two learning rates.


# %%
def run(command, *options):
    """Run a command of the package in FOLDER, and show the end of what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", f"captioning.{command}", *map(str, options)],
        cwd=FOLDER, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(*done.stdout.splitlines()[-6:], sep="\n")
    done.check_returncode()


MINE = [
    "--config-dir=my_conf", "experiment=mine", f"data.reader.file={TABLE}", f"data_root={FOLDER}",
    "features=patches", "model=look_after_reading", "trainer.precision=32", "logger=csv",
    f"max_epochs={1 if FAST else 8}",
]  # fmt: skip
run("train", "-m", *MINE, "optimizer.lr=1e-3,4e-3", f"hydra.sweep.dir={FOLDER}/sweep")
print((FOLDER / "sweep" / "comparison.csv").read_text())

# %% [markdown]
# To load a checkpoint, say that you vouch for the package that it names. (A stranger's checkpoint may not name any class it likes.)

# %%
sys.path.insert(0, str(FOLDER))  # where my_captioning lies
runs = csv.DictReader((FOLDER / "sweep" / "runs.csv").open())
best = max(runs, key=lambda row: float(row["cider_d"]))["folder"]
mine = captioning.load(best, trust=["my_captioning"])
picture = FOLDER / "mine" / "toy" / "images" / "val_00002.jpg"
display(mine(picture).show())

# %% [markdown]
# Which rate is better may be chance: repeat the sweep with more seeds (`seed=0,1,2`) before you believe a difference. Optuna, several processes and SLURM are
# described in [conf/README.md](../conf/README.md).
#
# ## 6. A file to give away
#
# `captioning export` puts model, words, decoding and backbone into one file that needs nothing else: no data, no feature file, no weights. (What it
# names of your own classes must be installed where it is used.)

# %%
run("export", f"checkpoint={best}", f"output={FOLDER}/mine.captioner", "trust=[my_captioning]")
print(f"{(FOLDER / 'mine.captioner').stat().st_size / 2**20:.1f} MB")
print(captioning.load(FOLDER / "mine.captioner", trust=["my_captioning"])(picture).text)

# %% [markdown]
# And from a terminal: `captioning caption checkpoint=mine.captioner image=dog.jpg trust=[my_captioning]`.
#
# **To try.** `features=resnet101` with photographs of yours instead of the patches. `model=transformer` instead of your own. Then read
# [CONTRIBUTING](../.github/CONTRIBUTING.md): an objective, a decoder and a data set are one file each, too.
