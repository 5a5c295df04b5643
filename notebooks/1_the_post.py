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
# # The post, from annotation file to attention pictures
#
# In 2018 Sigrid Keydana showed in [a post](https://blogs.rstudio.com/ai/posts/2018-09-17-eager-captioning/) how a network
# that has seen nothing but photographs and sentences learns to describe a photograph, and how to see *where it looks* while it
# writes each word. This notebook tells the post again with this package. It needs no download: the pictures are drawn scenes of
# coloured shapes, on which everything trains in minutes on a laptop and every caption can be checked.
#
# The post explains its idea well, but its code has flaws. They are numbered **S1** to **S14**, in the order of the harm they were
# expected to do, and each is marked below at the place where it belongs. What each costs was measured on photographs
# ([FLAWS.md](FLAWS.md) describes them all, [RESULTS.md](RESULTS.md#what-each-flaw-of-the-post-costs) has the numbers). Nothing
# else about a flaw is claimed here.
#
# You will build, in this order:
#
# 1. the **data**: pictures with several sentences each
# 2. **features**: what a frozen network sees, computed once
# 3. **words** as numbers
# 4. the **encoder**, 5. **attention**, 6. the **decoder**: three equations, each beside its code and its shapes
# 7. the **loss**, and **training**
# 8. **captions** after epochs 1, 4 and the last; **where the model looks**; and **what still goes wrong**
#
# Letters for sizes, everywhere in the package: B pictures in a batch, R regions of a picture, D numbers a region, H hidden units,
# T words of a caption, V words of the vocabulary.

# %% [markdown]
# ## Settings
#
# To run the same cells on COCO's photographs, as the post does, change one line: `EXPERIMENT, EPOCHS = "coco30k", 20`,
# after `captioning extract experiment=coco30k download=true`, which fetches 19 GB. That takes a GPU, or patience.

# %%
# %matplotlib inline
import os
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from IPython.display import Markdown, display

from captioning import load
from captioning.cli import silence_known_warnings
from captioning.data.toy import is_true, read_scenes
from captioning.features import read_image
from captioning.files import CONF
from captioning.metrics import score_all
from captioning.training import assemble, trace_shapes

EXPERIMENT, EPOCHS = "toy", 6
silence_known_warnings()  # of libraries, where there is nothing to act on
if Path.cwd().name == "notebooks":
    os.chdir("..")  # data/ and runs/ lie beside notebooks/, as for the commands
FAST = os.environ.get("CAPTIONING_NOTEBOOKS") == "fast"  # a few scenes and epochs, to test that the cells run
FOLDER = Path(os.environ.get("CAPTIONING_NOTEBOOK_RUNS", "runs/notebooks")) / f"1_the_post_{EXPERIMENT}"

options = [f"experiment={EXPERIMENT}", f"max_epochs={EPOCHS}", "prepare=true", "logger=csv", f"output_dir={FOLDER}"]
options += ["keep_every_epoch=true"]  # to see below what the model wrote after the first and the fourth
if FAST:
    options += [f"data_root={FOLDER}/data", "data.reader.scenes={train: 32, val: 8, test: 4}", "max_epochs=5"]
with initialize_config_dir(str(CONF), version_base="1.3"):
    config = compose("train", options)

# %% [markdown]
# `config` holds every option of the run as plain YAML; `assemble` turns it into objects and, with `prepare=true`, first draws the
# scenes and computes their features. We will take the parts out of `run` one by one.

# %%
run = assemble(config)
data, model = run.data, run.module.model

# %% [markdown]
# ## 1. Data: one picture, several right answers
#
# An annotation file lists pictures and, for each, several sentences that people wrote about it.

# %%
record = data.split("val")[2]
display(read_image(record.path))
for caption in record.captions:
    print("·", caption)

# %% [markdown]
# All of these are right. They name things in another order, leave out sizes, begin differently. So there is no single correct next
# word, and a captioner does not learn *the* caption; it learns a distribution, word by word:
#
# $$p(y_1, \dots, y_T \mid \text{picture}) = \prod_{t=1}^{T} p(y_t \mid y_1, \dots, y_{t-1}, \text{picture})$$
#
# Keep this ambiguity in mind. It decides what the loss can reach, what greedy decoding does, and, as we will see in
# [2_attention](2_attention.ipynb), where the model looks.

# %%
for split, records in data.records.items():
    print(f"{split}: {len(records)} pictures, {sum(len(r.captions) for r in records)} captions")

# %% [markdown]
# > **S4: the split is by caption.** The post draws 30,000 captions and holds a fifth of the *captions* out. A photograph has five,
# > so about a fifth of its validation captions belong to photographs that it trained on. Here whole pictures are held out.
# > Cost: none that three seeds show on photographs that no run saw, but the post's own validation loss looks better than it is.
# >
# > **S13, first half.** The post speaks of "24,000 training images". They are captions. (It also speaks of an LSTM, which is a GRU.)

# %% [markdown]
# ## 2. Features: look at each picture once
#
# A picture goes once through a network that was made for recognising things, and is never trained here. Its last grid of features
# is kept: R cells, each a vector of D numbers that describes one part of the picture. Attention will choose among these R
# cells; that is all the captioner ever sees of a picture.

# %%
extractor = instantiate(config.features.extractor)
pixels = extractor.transform(read_image(record.path))[None]  # (1, 3, height, width) bytes
with torch.no_grad():
    cells = extractor(pixels)  # (1, rows, columns, D)
regions = cells.flatten(1, 2)  # (1, R, D): row by row from the top left
print("pixels", tuple(pixels.shape), "-> cells", tuple(cells.shape), "-> regions", tuple(regions.shape))

# %% [markdown]
# Nothing about the network changes during training, so nothing needs to be computed twice. `assemble` has written the features of
# all pictures into one HDF5 file, in half precision, with a record of how they were made. A training run that expects another
# network is refused.

# %%
cache = data.cache
print(f"{cache.path.name}: {len(cache)} pictures × {cache.shape} numbers, {2 * cache.shape[0] * cache.shape[1] / 1024:.0f} KiB each")
print({key: cache.provenance[key] for key in ("architecture", "node", "weights", "image_size")})
stored = torch.from_numpy(cache.read([record.image_id])).float()
print(f"largest difference from what we have just computed: {(stored - regions).abs().max():.4f}")

# %% [markdown]
# The post keeps the last 8 × 8 × 2,048 grid of InceptionV3 with ImageNet's weights. On the drawn scenes the weights are random and
# the network is cut early: colours and edges are enough there.
#
# ## 3. Words as numbers
#
# A caption becomes a list of ids: START, the words in lower case, END. Captions of one batch are padded to the longest.

# %%
vocabulary = data.vocabulary
print(len(vocabulary), "words:", *vocabulary.words)
caption = record.captions[0]
print(caption, "->", vocabulary.encode(caption), "->", vocabulary.decode(vocabulary.encode(caption)))

# %%
batch = next(iter(data.train_dataloader()))
B, R, D = batch.features.shape
print("features", (B, R, D), "tokens", tuple(batch.tokens.shape))
print(batch.tokens[:3])  # the first three captions, 0 is padding

# %% [markdown]
# > **S5: the vocabulary sees validation captions**, and words beyond the 5,000 most frequent may be dropped without a trace. Here:
# > words of the training captions only, and the others become `<unk>`. Cost of the leak: none seen in one run.
# >
# > **S6: the tokenizer keeps control characters.** The post shortens Keras' filter so that `<start>` survives; newlines survive as
# > well. Here the special ids never pass through the tokenizer. Not measured.
# >
# > **S7: long captions lose their end.** The post takes the greatest length from other captions than those it draws; longer
# > ones lose their END, and one outlier sets the length of every batch. Here a caption that is cut keeps END. Not measured.

# %%
long_caption = "a very " + "very " * 30 + "long caption"
print(vocabulary.encode(long_caption, max_words=5), "<- ends with END, which is", vocabulary.encode("")[-1])

# %% [markdown]
# ## 4. The encoder
#
# One linear layer and a ReLU for every region by itself, from D numbers to as many as the decoder likes to work with:
#
# $$a_i = \mathrm{ReLU}(W x_i + b), \qquad i = 1 \dots R$$

# %%
features = batch.features.float()
encoder, attention = model.encoder, model.attention
x = encoder.standardize(features)  # every channel to mean 0 and deviation 1 over the training photographs
a = torch.relu(x @ encoder.linear.weight.T + encoder.linear.bias)
print("x", tuple(x.shape), "-> a", tuple(a.shape))
torch.testing.assert_close(a, encoder(features))  # the same as the package's layer

# %% [markdown]
# ## 5. Attention
#
# Before each word the decoder asks: which regions matter now? Its state $h_{t-1}$ (B × H) is the question. Every region is
# scored by a small perceptron (Bahdanau, Cho and Bengio 2015), the scores become weights that sum to one, and the weighted mean of
# the regions is what the decoder sees:
#
# $$e_i = v^\top \tanh(W_k a_i + W_q h_{t-1}) \qquad \alpha = \mathrm{softmax}(e) \qquad z_t = \sum_i \alpha_i a_i$$
#
# The products $W_k a_i$ do not depend on the word, so they are computed once a picture ("keys").

# %%
h = torch.randn(B, model.hidden_dim)  # some state: (B, H)
keys = attention.key(a)  # (B, R, A)
query = attention.query(h)  # (B, A)
e = attention.score(torch.tanh(keys + query[:, None])).squeeze(-1)  # (B, R)
alpha = e.softmax(-1)  # (B, R), each row sums to 1
z = (alpha[..., None] * a).sum(1)  # (B, R, 1) * (B, R, D') summed over R -> (B, D')
for name in ("keys", "query", "e", "alpha", "z"):
    print(f"{name:6}", tuple(locals()[name].shape))
context, weights = attention(h, model.encode(batch.features))
torch.testing.assert_close(z, context)
torch.testing.assert_close(alpha, weights)

# %% [markdown]
# The question has a blind spot: $h_{t-1}$ was computed before the last word $y_{t-1}$ was read. After "a red …" the attention
# knows that it was *red* only as far as the state that chose the word knew it already. On the drawn scenes our model therefore adds the last word to
# the question (`word_query`), $h_{t-1} + W_y E y_{t-1}$. [2_attention](2_attention.ipynb) shows what that changes; the post's model
# (`model=gru_attention`) is without it.
#
# > **S10: it is not Show, Attend and Tell.** The post calls this the attention of Xu et al. (2015). Only the score is the same.
# > Their state starts from the mean region and not at zero; a gate decides how much of $z_t$ counts; $z_t$ also reaches
# > the output layer; and there is dropout. That model is `model=show_attend_tell` here; compare the two
# > [in the table of families](RESULTS.md#all-families-one-recipe).

# %% [markdown]
# ## 6. The decoder
#
# A GRU reads the context and the last word and updates its state; two layers turn the state into a score for every word:
#
# $$h_t = \mathrm{GRU}([z_t;\, E y_{t-1}],\; h_{t-1}) \qquad p(y_t) = \mathrm{softmax}(W_2 \tanh(W_1 h_t))$$

# %%
memory = model.encode(batch.features)  # regions and keys: once a picture
state = model.start(memory)  # h_0 = 0: (B, H)
step = model.step(batch.tokens[:, 0], state, memory)  # reads START
logits = model.head(step.hidden)  # (B, V)
print("hidden", tuple(step.hidden.shape), "attention", tuple(step.attention.shape), "logits", tuple(logits.shape))

# %% [markdown]
# These four methods, `encode`, `start`, `step` and `head`, are all that the rest of the package knows of any model. Training, greedy
# decoding, beam search and attention pictures are each written once against them.
#
# > **S1: the GRU forgets its state.** The post calls the GRU one word at a time without handing it the last state, so that the
# > state is zero before every word. It knows the last word and little of what came before: a likely cause of the post's "a table
# > with a table with a table". Cost: 8 CIDEr-D, see [row S1](RESULTS.md#what-each-flaw-of-the-post-costs). Switch:
# > `model.recurrence._target_=captioning.models.ResetState`.
# >
# > **S9: nothing stands between the output layers.** Two linear layers without an activation between them are one linear layer.
# > Here there is a tanh. Cost: none that three seeds show. Switch: `model.activation._target_=torch.nn.Identity`.
# >
# > **S11: CPU and GPU models differ.** The port lost an option of the GRU, so that the CPU's gates are other functions than the
# > GPU's. Here there is one GRU for every device. A matter of portability, not of scores.
#
# S1 in four lines: with the same last word and the same picture, do the words before make a difference?

# %%
from captioning.models import ResetState

with torch.no_grad():
    for name, recurrence in (("state carried", model.recurrence), ("state reset, as posted", ResetState())):
        model.recurrence, kept = recurrence, model.recurrence
        after = [model.step(batch.tokens[:, 2], torch.full_like(state, value), memory).hidden for value in (0.0, 0.5)]
        model.recurrence = kept
        print(f"{name}: two different pasts change the new state by {(after[0] - after[1]).abs().mean():.3f} on average")

# %% [markdown]
# What is left under S1 comes through the attention's question alone.
#
# The post prints shapes with a helper called `maybecat`, and recommends the habit. Here one call lists every layer, with what goes in
# and what comes out, for one real batch (`trace_shapes=true` does so in a training run):

# %%
print(*trace_shapes(run.module, batch), sep="\n")

# %% [markdown]
# ## 7. The loss, with teacher forcing
#
# In training the decoder always reads the *right* last word, whatever it would have said itself. Inputs and targets are the same
# caption, shifted by one:

# %%
inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
for given, wanted in zip(inputs[0].tolist(), targets[0].tolist(), strict=True):
    if vocabulary.words[wanted] != vocabulary.words[0]:
        print(f"{vocabulary.words[given]:>12} -> {vocabulary.words[wanted]}")

# %% [markdown]
# The loss is the mean over all *real* words of $-\log p(y_t)$, in nats a word. Padding does not count:

# %%
with torch.no_grad():
    output = model(batch.features, inputs)  # hidden: (B, T, H)
    log_p = model.head(output.hidden).log_softmax(-1)  # (B, T, V)
    nll = -log_p.gather(-1, targets[..., None]).squeeze(-1)  # (B, T)
    real = targets != 0  # (B, T): 0 is padding
    loss = nll[real].mean()
    torch.testing.assert_close(loss, run.module.objective(model, batch).logged["nll"])
print(f"{loss:.3f} nats a word; {torch.tensor(len(vocabulary)).log():.3f} if all words were equally likely")

# %% [markdown]
# It starts below that, because the last layer's bias starts at the logarithms of the words' frequencies (`init_output_bias`).
#
# On the drawn scenes training adds a small price for wide attention (`objective=focused_attention`), which the post does not have:
# without it, one of three seeds named things rightly while attention was elsewhere. [2_attention](2_attention.ipynb) measures that.
#
# > **S2: targets are shifted by one.** Ported from Python, whose lists begin at 0, to R, whose lists begin at 1, the post's loop
# > trains the first step to say START, and never trains the last column. At test the first word would be `<start>`. Cost: none
# > seen in one run. Switch: `objective=shifted_targets`.
# >
# > **S8: the logged loss counts padding.** The post averages over padding and divides an epoch's total by the number of captions
# > instead of batches. The gradient is acceptable, the printed number can be compared with nothing:

# %%
with torch.no_grad():
    as_logged = (nll * real).mean(0).sum() / targets.shape[1] / B
print(f"this batch: {loss:.3f} nats a word; as the post logs it: {as_logged:.5f}")

# %% [markdown]
# > **S12: data are not shuffled.** The post's shuffling is commented out, so every epoch has the same batches. Here they are drawn
# > anew, the same for the same seed. Not measured.

# %%
sampler = data.train_dataloader().batch_sampler
for epoch in (0, 1, 0):
    sampler.set_epoch(epoch)
    print("epoch", epoch, "begins with the captions", next(iter(sampler))[:8], "…")

# %% [markdown]
# ## 8. Training
#
# One line. After every epoch the model captions the validation pictures and is scored.

# %%
run.fit()

# %%
shown = ["epoch", "nll", "cider_d", "bleu_4", "attention_entropy", "attention_pointing"]
rows = [" | ".join(["", *shown, ""]), "|---" * len(shown) + "|"]
for epoch in run.module.history:
    cells = [str(epoch["epoch"] + 1), *(f"{epoch[name]:.3f}" if name in epoch else "–" for name in shown[1:])]
    rows.append(" | ".join(["", *cells, ""]))
display(Markdown("\n".join(rows)))

# %% [markdown]
# `nll` is in nats a word and cannot reach zero: which of several right sentences comes next cannot be known. CIDEr-D and BLEU-4
# (times 100) compare words with the five references. `attention_entropy` is 1 where the model looks everywhere alike and 0 where it
# looks at one cell; `attention_pointing` is the share of named things that it looks at while naming them, and is known only where
# the data say where things are.
#
# > **S14: nothing is measured.** The post shows six captions an epoch and no score, no baseline, no second seed. Whether attention
# > helps cannot be known from that.
#
# ## 9. Captions while it learns
#
# A checkpoint is kept of every epoch, and each describes itself: `load` needs nothing but the file.

# %%
pictures = [record.path for record in data.split("val")[:4]]
last = len(run.module.history) - 1
for epoch in (0, 3, last):
    captioner = load(FOLDER / "checkpoints" / f"epoch{epoch:02d}.ckpt", decoding="greedy")
    print(f"after epoch {epoch + 1}")
    for caption in captioner(pictures):
        print("   ", caption.text)

# %% [markdown]
# Grammar comes first and for little: frequent words in a frequent order. What is in the picture comes next, and relations between things last.
#
# > **S3: words are drawn from softmax(exp(logits)).** The post hands `exp(logits)` to a function that expects logits. Where logits are
# > large, that is the likeliest word; where they are small, nearly uniform noise over the whole vocabulary. Adding the same number to all logits
# > changes nothing for a softmax and everything for this:

# %%
example = torch.tensor([4.0, 3.0, 0.0])  # three words
for shift in (0, -4):
    p, posted = (example + shift).softmax(-1), (example + shift).exp().softmax(-1)
    print(f"logits {(example + shift).tolist()}: softmax {p.numpy().round(2)}, the post's draw {posted.numpy().round(2)}")

# %% [markdown]
# > Cost: none or nearly everything, [depending on the logits](RESULTS.md#what-each-flaw-of-the-post-costs). Switch:
# > `decoding=as_posted`. Here words come from greedy or beam search, or are sampled from the model's own distribution:

# %%
for decoding in ("greedy", "beam", "nucleus"):
    print(f"{decoding:8}", captioner(pictures[2], decoding=decoding).text)

# %% [markdown]
# ## 10. Where it looks
#
# Every word has its row of R weights, laid back over the picture as light.

# %%
captions = captioner(pictures, decoding="beam")
for caption in captions:
    display(caption.show())

# %% [markdown]
# > **S13, second half: attention pictures are off.** The post's matrix has a spare row of zeros, and its pictures are drawn
# > unnormalised. Here row t belongs to word t (a test holds it), and each word's map is stretched from its own minimum to its
# > own maximum. So never compare the brightness of two words; compare the numbers:

# %%
for caption in captions[:2]:
    for word, row in zip(caption.words, caption.attention, strict=True):
        print(f"{word:>12}: largest weight {row.max():.2f}, of {len(row)} cells that would be {1 / len(row):.3f} each if even")
    print()

# %% [markdown]
# ## 11. What still goes wrong
#
# The pictures with the lowest CIDEr-D on validation, and what people wrote:

# %%
records = data.split("val")
found = captioner([record.path for record in records], decoding="beam")
texts = {record.image_id: caption.text for record, caption in zip(records, found, strict=True)}
scores = score_all(["cider_d"], texts, {record.image_id: record.captions for record in records})["cider_d"]
worst = sorted(range(len(records)), key=lambda row: scores.per_image[row])[:3]
for row in worst:
    display(read_image(records[row].path).resize((150, 150)))
    print(f"model:  {found[row].text}\npeople: {records[row].captions[0]}\n")

# %% [markdown]
# A score against sentences is not truth. On the drawn scenes a checker knows what is there:

# %%
if EXPERIMENT == "toy":
    scenes = read_scenes(f"{config.data.reader.root}/captions_val.json")
    true = {key: is_true(text, scenes[key]) for key, text in texts.items()}
    print(f"true captions: {sum(true.values())} of {len(true)}")
    for key in [key for key, holds in true.items() if not holds][:8]:
        print(f"   {texts[key]:60} | " + ", ".join(shape.noun() for shape in scenes[key].shapes))

# %% [markdown]
# Look at which words are wrong. Colours and kinds are mostly right; *above* and *left of* are not always: a cell of the grid
# says what is in it, but only the canvas' shading says where it is.
#
# ## The flaws once more
#
# | | flaw | where above | what it costs |
# |---|---|---|---|
# | S1 | the GRU forgets its state | 6 | large |
# | S2 | targets are shifted by one | 7 | within chance |
# | S3 | softmax(exp(logits)) | 9 | none or nearly everything |
# | S4 | the split is by caption | 1 | within chance; its own validation looks better |
# | S5 | the vocabulary sees validation captions | 3 | within chance |
# | S6 | control characters | 3 | not measured |
# | S7 | long captions lose their end | 3 | not measured |
# | S8 | the logged loss counts padding | 7 | none: a matter of the log |
# | S9 | nothing between the output layers | 6 | large |
# | S10 | it is not Show, Attend and Tell | 5 | another model |
# | S11 | CPU and GPU models differ | 6 | none: a matter of portability |
# | S12 | data are not shuffled | 7 | not measured |
# | S13 | attention pictures are off | 1, 10 | none: a matter of the picture |
# | S14 | nothing is measured | 8 | none |
#
# The numbers behind "large" and "within chance": [RESULTS.md](RESULTS.md#what-each-flaw-of-the-post-costs).
#
# **To try.** Switch one flaw on (`options.append("model.recurrence._target_=captioning.models.ResetState")`), train again, and
# read the captions of epoch 1. Then [2_attention](2_attention.ipynb): seven kinds of attention on the same pictures.
