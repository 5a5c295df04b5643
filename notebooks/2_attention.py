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
# # Does attention look at what it says?
#
# An attention picture is convincing: the word *circle*, and light on a circle. But nothing in the loss asks for that. The loss asks
# for the right word, and a model may find it by looking elsewhere. On photographs one picture at a time can be judged by eye. On
# the drawn scenes of [1_the_post](1_the_post.ipynb) the place of every shape is known, so looking can be **measured**.
#
# This notebook
#
# 1. defines the **pointing score**;
# 2. trains **seven attentions** on the same pictures: the post's, the same with one repair, soft and hard (Xu et al. 2015), adaptive (Lu
#    et al. 2017), two-level (Anderson et al. 2018), multi-head (Vaswani et al. 2017);
# 3. finds out **why** some look in the wrong place although their captions are right, and mends it;
# 4. lets attention **collapse** on purpose, and shows the two statistics that notice.

# %%
# %matplotlib inline
import os
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from IPython.display import Markdown, display

from captioning import load
from captioning.cli import silence_known_warnings
from captioning.data import ToyPlaces, read_toy
from captioning.data.toy import COLOURS, KINDS, is_true, read_scenes
from captioning.features.grid import cell_boxes
from captioning.files import CONF
from captioning.metrics.pointing import pool_pointing, score_pointing
from captioning.training import assemble

silence_known_warnings()  # of libraries, where there is nothing to act on
if Path.cwd().name == "notebooks":
    os.chdir("..")  # data/ and runs/ lie beside notebooks/, as for the commands
FAST = os.environ.get("CAPTIONING_NOTEBOOKS") == "fast"  # a few scenes and one epoch, to test that the cells run
FOLDER = Path(os.environ.get("CAPTIONING_NOTEBOOK_RUNS", "runs/notebooks")) / "2_attention"
SEEDS = [0]  # each seed trains nine models, of some minutes each; what is trained already is kept

COMMON = ["experiment=toy", "logger=csv", "max_epochs=3"]
if FAST:
    COMMON += [f"data_root={FOLDER}/data", "data.reader.scenes={train: 16, val: 8, test: 8}", "max_epochs=1"]


def compose_run(*options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*COMMON, *options])


# %% [markdown]
# ## 1. The pointing score
#
# Take every word that rightly names something whose place is known: here a colour followed by its kind, where such a shape exists. Take
# the region with the largest weight for that word. The word hits if that region's centre lies in the shape's box. The score is the
# share of words that hit. (It is the *pointing game* of Zhang et al. 2016.) Words that name something that is not there do not
# count: that is a matter of the other metrics.
#
# In ten lines, for a grid of cells:


# %%
def point(attention, cells, places):
    """attention (T, R), cells (R, 4), places {position of a word: boxes (n, 4)} -> hits, words"""
    hits = 0
    for position, boxes in places.items():
        left, top, right, bottom = cells[attention[position].argmax()]
        x, y = (left + right) / 2, (top + bottom) / 2
        hits += any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in boxes)
    return hits, len(places)


cells = cell_boxes((2, 2), (2, 2))  # a grid of 2 × 2 cells: (4, 4)
maps = np.array([[0.1, 0.6, 0.1, 0.2], [0.4, 0.2, 0.2, 0.2]])  # two words: the second cell, then the first
box = np.array([[0.6, 0.1, 0.9, 0.4]])  # something in the upper right
print(point(maps, cells, {0: box, 1: box}), score_pointing(maps, cells, {0: box, 1: box}))  # the package's own

# %% [markdown]
# A training run logs it as `val/attention_pointing` wherever its data know places (`data.places`): these scenes, and COCO with its
# `instances_*.json`.
#
# ## 2. Seven attentions
#
# All get the same features, words, epochs and, as far as their designs allow, sizes.

# %%
SMALL = ["model.hidden_dim=256", "model.embedding_dim=64", "model.dropout=0", "encoder@model.encoder=projection_128"]
PLAIN = "objective=cross_entropy"  # without the price for wide attention that the toy experiment sets; see 3
FAMILIES = {
    "as posted": ["model=gru_attention_small", "model.word_query=null", PLAIN],
    "asking with the last word": ["model=gru_attention_small", PLAIN],
    "soft": ["model=show_attend_tell", PLAIN, *SMALL, "model.attention.attention_dim=128"],
    "hard": ["model=show_attend_tell_hard", "objective=reinforce", *SMALL, "model.attention.attention_dim=128"],
    "adaptive": ["model=adaptive", PLAIN, *SMALL[:3], "model.attention_dim=128"],
    "two-level": ["model=up_down", PLAIN, *SMALL, "model.attention_dim=128"],
    "multi-head": ["model=transformer", PLAIN, "model.hidden_dim=128", "model.mlp_dim=256", "model.num_layers=2", "model.dropout=0", "optimizer.lr=1e-3"],
}
if FAST:  # the others are only composed
    for options in FAMILIES.values():
        compose_run(*options, "output_dir=none")
    FAMILIES = {name: FAMILIES[name] for name in ("as posted", "hard", "multi-head")}


def train(name, options, seed):
    """Train a family, unless its run folder is there already; return the folder."""
    folder = FOLDER / f"{name.replace(' ', '_')}_{seed}"
    if not (folder / "summary.json").exists():
        assemble(compose_run(*options, f"seed={seed}", f"output_dir={folder}")).fit()
    return folder


folders = {(name, seed): train(name, options, seed) for name, options in FAMILIES.items() for seed in SEEDS}

# %% [markdown]
# Now each of them captions the 200 test scenes, which no run has seen, and is scored for truth and for pointing.

# %%
toy = compose_run("output_dir=none").data.reader
records = [record for record in read_toy(toy.root, toy.scenes, toy.seed) if record.split == "test"]
scenes, places = read_scenes(f"{toy.root}/captions_test.json"), ToyPlaces(f"{toy.root}/captions_test.json")


def caption_test(folder):
    return load(folder / "checkpoints" / "last.ckpt", decoding="greedy")([r.path for r in records], batch_size=50)


def pointing(captions, only=lambda record, caption, position: True):
    """Pool the score over captions, of the words that `only` chooses."""
    parts = []
    for record, caption in zip(records, captions, strict=True):
        known = places(record.image_id, caption.words)
        chosen = {position: boxes for position, boxes in known.items() if only(record, caption, position)}
        parts.append(score_pointing(caption.attention, cell_boxes(caption.image_size, caption.grid), chosen))
    return pool_pointing(parts)


found = {key: caption_test(folder) for key, folder in folders.items()}
rows = ["| attention | seed | true captions | pointing | words |", "|---|---|---|---|---|"]
for (name, seed), captions in found.items():
    true = np.mean([is_true(c.text, scenes[r.image_id]) for r, c in zip(records, captions, strict=True)])
    score = pointing(captions)
    rows.append(f"| {name} | {seed} | {true:.1%} | {score.score:.3f} | {score.words} |")
any_caption = next(iter(found.values()))[0]
cells = cell_boxes(any_caption.image_size, any_caption.grid)  # (R, 4)
each = np.eye(len(cells))  # a map that looks at the first cell alone, at the second, …
boxes = [np.array([shape.box()]) for scene in scenes.values() for shape in scene.shapes]
chance = pool_pointing(score_pointing(each, cells, dict.fromkeys(range(len(cells)), box)) for box in boxes)
rows.append(f"| a cell at random | | | {chance.score:.3f} | |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# One seed is an example, no result. What has been measured, and how, stands in [RESULTS.md](RESULTS.md#where-attention-points).
#
# The same scene through all eyes:

# %%
example = next(row for row, record in enumerate(records) if len(scenes[record.image_id].shapes) == 2)
for (name, seed), captions in found.items():
    if seed == SEEDS[0]:
        figure = captions[example].show()
        figure.suptitle(f"{name}: {captions[example].text}")
        display(figure)

# %% [markdown]
# ## 3. Why right words come with wrong looks
#
# Split the score by how the word stands in its caption: a colour or a kind, of the shape that is named first or of a later one. A
# scene with a single shape leaves nothing to choose, so take those with more.

# %%
def is_of_first_shape(caption, position):
    """Whether no shape is named before the one that the colour or kind at this position belongs to."""
    start = position - (caption.words[position] in KINDS)  # where its colour stands
    return not any(word in KINDS for word in caption.words[:start])


CASES = {
    "first: colour": (True, COLOURS),
    "first: kind": (True, KINDS),
    "later: colour": (False, COLOURS),
    "later: kind": (False, KINDS),
}


def split(captions):
    """The score of each case."""
    shares = []
    for first, words in CASES.values():

        def only(record, caption, position, first=first, words=words):
            belongs = caption.words[position] in words and is_of_first_shape(caption, position) is first
            return belongs and len(scenes[record.image_id].shapes) > 1

        shares.append(f"{pointing(captions, only).score:.2f}")
    return shares


rows = [f"| attention | {' | '.join(CASES)} |", "|---" * 5 + "|"]
for (name, _), captions in found.items():
    rows.append(f"| {name} | {' | '.join(split(captions))} |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# The post's question is $h_{t-1}$, computed before $y_{t-1}$ was read: when attention looks for the kind, it does not know which colour was
# just said, only which shape it was about to name. The families that ask *after* reading the last word (adaptive, two-level,
# multi-head) know it. The post's model can be given it with one matrix, $z_t = \mathrm{attention}(h_{t-1} + W_y E y_{t-1};\, a)$: that is
# `model.word_query`, a `torch.nn.Linear` from a word's vector to the state's size, and nothing if it is `null`, as in the post.
#
# Does that make it look better? Compare *first: kind* of the two rows. It can, but nothing makes it: of three seeds that were trained
# for four epochs ([RESULTS.md](RESULTS.md#where-attention-points)), one said "a red square", got *square* right, and looked
# elsewhere. How? It saw the kind already while it looked for the colour, the GRU remembers it, and so attention is free to look for
# what comes next. A right word does not show that the model looked there. The loss asks for the words only, and is content with a mixture of many cells as long as they can be told from it.
#
# So ask for it: add to the loss the entropy of the maps, as a share of the greatest possible, times 0.03
# (`objective=focused_attention`, what the toy experiment trains with).

# %%
MENDED = {
    "as posted and focused": ["model=gru_attention_small", "model.word_query=null", "objective=focused_attention"],
    "asking with the last word and focused": ["model=gru_attention_small", "objective=focused_attention"],
}
focused = {name: caption_test(train(name, options, SEEDS[0])) for name, options in MENDED.items()}
rows = ["| attention | pointing | " + " | ".join(CASES) + " |", "|---" * 6 + "|"]
for name, captions in focused.items():
    rows.append(f"| {name} | {pointing(captions).score:.3f} | {' | '.join(split(captions))} |")
display(Markdown("\n".join(rows)))
for name, captions in focused.items():
    figure = captions[example].show()
    figure.suptitle(f"{name}: {captions[example].text}")
    display(figure)

# %% [markdown]
# One thing had to be mended in the data, not in the model. If chance decides which of two shapes a sentence names first, nothing can look
# at it before its colour has been said: the scenes' sentences begin with the highest shape, or, after "There is" and a number, with
# the lowest. People's captions have such an order, too; they begin with what catches the eye.
#
# ## 4. Collapse
#
# Attention can also fail without any word showing it: when it spreads evenly over all regions, or gives every word the same map. Both leave
# the mean region. Take the post's model and hold the last vector of the score, $v$, at zero: all energies are equal.

# %%
run = assemble(compose_run(*FAMILIES["as posted"], "max_epochs=1", f"output_dir={FOLDER}/collapsed"))
score = run.module.model.attention.score
torch.nn.init.zeros_(score.weight)
score.requires_grad_(False)
run.fit()

# %% [markdown]
# The training log above has warned: *attention has collapsed*. Two statistics, logged after every epoch, see it (the pointing score would
# too, but needs places):
#
# - `val/attention_entropy`: the entropy of a map as a share of the greatest possible, $-\sum_i \alpha_i \log \alpha_i / \log R$. 1 is even.
# - `val/attention_change`: how much of the attention moves from one word to the next, $\frac12 \sum_i |\alpha_{t,i} - \alpha_{t-1,i}|$. 0
#   is the same map for every word.

# %%
history = {"collapsed": run.module.history[-1]}
for (name, seed), folder in folders.items():
    history[f"{name}, seed {seed}"] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["captioning"]["history"][-1]
rows = ["| attention | nats a word | CIDEr-D | entropy | change |", "|---|---|---|---|---|"]
for name, epoch in history.items():
    rows.append(f"| {name} | {epoch['nll']:.3f} | {epoch['cider_d']:.1f} | {epoch['attention_entropy']:.3f} | {epoch['attention_change']:.3f} |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# Read the captions of a collapsed model before you believe a good score:

# %%
for caption in load(FOLDER / "collapsed" / "checkpoints" / "last.ckpt", decoding="greedy")([r.path for r in records[:4]]):
    print(caption.text)

# %% [markdown]
# Hard attention collapses by itself when its reward is too noisy: with the mean cost of a caption's words as every location's reward, as the
# authors have it, its entropy stayed above 0.97 of the greatest possible in one epoch on photographs ([RESULTS.md](RESULTS.md#show-attend-and-tell-soft-hard-doubly-stochastic)).
#
# **To try.** What does the price do to the other families, and to photographs? One run at 0.3 had scored less when it was stopped after two epochs: is that so with four, and with other seeds? Then
# [3_your_own](3_your_own.ipynb).
