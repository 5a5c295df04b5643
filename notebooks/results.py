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
# # Every family on the same photographs
#
# Flickr8k, 6,000 training and 1,000 dev photographs (224 × 224), features of the **partial InceptionV3 at `Mixed_7b`**:
# real ImageNet weights without `Mixed_7b.branch3x3dbl_2`, so that 1,280 of 2,048 channels are real. One run of each
# with seed 0, the same schedule for all (`experiment=flickr8k` and those that inherit from it), 2 CPU cores, no GPU.
# Scores are those of dev, at the epoch of the best greedy CIDEr-D, × 100; a ± is half the 95 % bootstrap interval over
# images. It says nothing about other seeds. Minutes are those of the whole training command, start, validation and checkpoints
# included, on two cores, with at most two minutes of tests at the lowest priority beside a run.
#
# The numbers come from `results.json`, which `notebooks/collect.py` gathered out of the run folders of
# `python -m captioning.train` and `python -m captioning.evaluate`; the commands stand in RESULTS.md and in the experiments.

# %%
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from captioning.evaluation.tables import p_cell

here = Path("notebooks") if Path("notebooks/results.json").exists() else Path()
runs = {run["run"]: run for run in json.loads((here / "results.json").read_text())}

LABELS = {
    "base_most_frequent": "most frequent caption",
    "base_nearest_neighbour": "nearest neighbour",
    "mean_pooled": "mean region, no attention",
    "seed": "GRU + additive attention (the post's)",
    "sat_soft": "Show-Attend-Tell, soft",
    "sat_hard": "Show-Attend-Tell, hard",
    "up_down": "Up-Down",
    "translator": "Attentive Translator",
    "topic_guided": "Topic-Guided",
    "adaptive": "Adaptive attention",
    "transformer": "Transformer",
    "meshed_memory": "Meshed-Memory Transformer",
}
OTHERS = {
    "one_s0": "one epoch, seed 0",
    "one_s1": "one epoch, seed 1",
    "one_s2": "one epoch, seed 2",
    "topic_best": "Topic-Guided, six epochs",
    "scst": "the same, self-critical",
    "sat_soft_before": "Show-Attend-Tell, soft, an earlier commit",
    "sat_hard_before": "Show-Attend-Tell, hard, an earlier commit",
    "scst3": "Transformer, self-critical",
    "seed8": "eight epochs, peak 2e-3, seed 0",
    "seed8_s1": "eight epochs, peak 2e-3, seed 1",
    "seed8_s2": "eight epochs, peak 2e-3, seed 2",
    "seed8_last": "the last of eight epochs, seed 0",
    "seed8_s1_last": "the last of eight epochs, seed 1",
    "seed8_s2_last": "the last of eight epochs, seed 2",
    "seed_new": "the post's model, four epochs, a later commit",
    "sat_2e4": "Show-Attend-Tell, soft, Adam at a constant 2e-4",
    "scheduled": "the post's model, scheduled sampling",
    "seed8_1": "eight epochs, peak 1e-3",
}
COMPLETE = {
    "mean0": "mean region, no attention",
    "c_gru0": "GRU + additive attention (the post's), seed 0",
    "c_gru1": "the same, seed 1",
    "c_gru2": "the same, seed 2",
    "c_sat0": "Show-Attend-Tell, soft, seed 0",
    "c_sat1": "the same, seed 1",
    "c_sat2": "the same, seed 2",
    "hard0": "Show-Attend-Tell, hard",
    "c_updown0": "Up-Down, seed 0",
    "c_updown1": "the same, seed 1",
    "c_updown2": "the same, seed 2",
    "c_translator0": "Attentive Translator",
    "c_topic0": "Topic-Guided",
    "c_adaptive0": "Adaptive attention",
    "meshed0": "Meshed-Memory Transformer, small",
    "t0": "Transformer, regularised, seed 0",
    "t1": "the same, seed 1",
    "t2": "the same, seed 2",
    "ens3": "three of them as an ensemble",
    "s0": "self-critical, seed 0",
    "s1": "self-critical, seed 1",
    "s2": "self-critical, seed 2",
    "ens3s": "three of them as an ensemble",
    "t_raw": "Transformer, features not standardised",
    "t_ema": "Transformer, averaged weights",
    "t_wd": "Transformer, word dropout",
    "t_text": "Transformer, sentences without pictures",
}
BETTER = {
    "c_ute0": "Up-Down, sentences and average, seed 0",
    "c_ute1": "the same, seed 1",
    "c_ute2": "the same, seed 2",
    "c_tte0": "Transformer, sentences and average, seed 0",
    "c_tte1": "the same, seed 1",
    "c_tte2": "the same, seed 2",
    "c_ste0": "Show-Attend-Tell, sentences and average",
    "c_mte0": "Attentive Translator, sentences and average",
    "c_ue0": "Up-Down, average alone",
    "c_ut0": "Up-Down, sentences alone",
    "c_ens3": "ensemble: Up-Down, three seeds",
    "c_ens4": "ensemble: Up-Down twice, Transformer, Show-Attend-Tell",
    "c_ens4k": "ensemble: four families",
    "c_us0": "self-critical: Up-Down, seed 0",
    "c_us1": "the same, seed 1",
    "c_us2": "the same, seed 2",
    "c_ss0": "self-critical: Show-Attend-Tell",
    "c_ms0": "self-critical: Attentive Translator",
    "c_ts0": "self-critical: Transformer",
    "c_ens3s": "self-critical ensemble: Up-Down, three seeds",
    "c_ens4s": "self-critical ensemble: Up-Down twice, Transformer, Show-Attend-Tell",
    "c_ens4ks": "self-critical ensemble: four families",
    "c_topicnone0": "Topic-Guided without its topic",
    "c_transnoglobal0": "Attentive Translator without the mean region",
    "c2_trans_ref": "Attentive Translator, two epochs on the photographs themselves",
    "c2_trans_noattention": "the same without attention",
    "c2_trans_shuffled": "the same with regions in a random order",
    "c2_nn60": "60 nearest neighbours",
}
THREE = {
    "c3_nn1": "nearest neighbour",
    "c3_nn20": "20 nearest neighbours",
    "c3_mean0": "mean region, no attention",
    "c3_gru0": "GRU + additive attention (the post's)",
    "c3_sat0": "Show-Attend-Tell, soft",
    "c3_hard0": "Show-Attend-Tell, hard",
    "c3_ud0": "Up-Down, seed 0",
    "c3_ud1": "the same, seed 1",
    "c3_ud2": "the same, seed 2",
    "c3_translator0": "Attentive Translator",
    "c3_topic0": "Topic-Guided",
    "c3_adaptive0": "Adaptive attention",
    "c3_t0": "Transformer",
    "c3_meshed0": "Meshed-Memory Transformer, small",
    "c1_ud0": "control: Up-Down, one backbone",
    "c3_ens3": "ensemble: Up-Down, three seeds",
    "c3_ens4": "ensemble: Up-Down twice, Transformer, Show-Attend-Tell",
    "c3_us0": "self-critical: Up-Down, seed 0",
    "c3_us1": "the same, seed 1",
    "c3_ens2s": "ensemble of these two",
    "c3_ens4m": "ensemble: these two, Transformer and Show-Attend-Tell by cross-entropy",
}
METRICS = {
    "bleu_1": "B-1",
    "bleu_2": "B-2",
    "bleu_3": "B-3",
    "bleu_4": "B-4",
    "rouge_l": "R-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
}


def cell(score: dict) -> str:
    if score.get("low") is None:
        return f"{score['score']:.1f}"
    return f"{score['score']:.1f} ± {(score['high'] - score['low']) / 2:.1f}"


def table(names: Iterable[str], decoding: str) -> str:
    rows = [
        "| | parameters | kept epoch | " + " | ".join(METRICS.values()) + " | commit | minutes |",
        "|---" * (len(METRICS) + 5) + "|",
    ]
    for name in names:
        run = runs[name]
        if decoding not in run:
            continue
        count = f"{run['parameters'] / 1e6:.1f} M" if run.get("parameters") else "–"
        by_epoch = run.get("cider_by_epoch")
        kept = f"{by_epoch.index(max(by_epoch)) + 1} of {len(by_epoch)}" if by_epoch else "–"
        cells = [cell(run[decoding][m]) if m in run[decoding] else "–" for m in METRICS]
        rows.append(
            f"| {(LABELS | OTHERS | COMPLETE | BETTER | THREE).get(name, name)} | {count} | {kept} | "
            + " | ".join(cells)
            + f" | {run['commit']} | {run.get('minutes', '–')} |"
        )
    return "\n".join(rows)


families = [name for name in LABELS if {"greedy", "beam5"} & runs.get(name, {}).keys()]

# %% [markdown]
# ## Beam 5, average log-probability

# %%
display(Markdown(table(families, "beam5")))

# %% [markdown]
# ## Greedy (the two baselines without a model have no decoding)

# %%
display(Markdown(table(families, "greedy")))

# %% [markdown]
# ## What they cost
#
# `python -m benchmarks.families --json notebooks/speed.json` (commit 21acf91): 64 regions, batch 64, 12 words, bfloat16, 2
# threads, medians of 5, the machine otherwise idle.

# %%
MODELS = {
    "mean_pooled": "mean_pooled",
    "seed": "gru_attention_flickr",
    "sat_soft": "show_attend_tell_flickr",
    "sat_hard": "show_attend_tell_hard_flickr",
    "up_down": "up_down_flickr",
    "translator": "attentive_translator",
    "topic_guided": "topic_guided_flickr",
    "adaptive": "adaptive",
    "transformer": "transformer",
    "meshed_memory": "meshed_memory_flickr",
}
speed = json.loads((here / "speed.json").read_text())
rows = ["| | ms a step | ms an image, greedy | beam 5 |", "|---|---|---|---|"]
for name, model in MODELS.items():
    taken = speed[model]
    images = f"{taken['ms_an_image_greedy']:.1f} | {taken['ms_an_image_beam5']:.1f}"
    rows.append(f"| {LABELS[name]} | {taken['ms_a_step']:.0f} | {images} |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# ## What a beam of 5 adds

# %%
rows = ["| | CIDEr-D | BLEU-4 |", "|---|---|---|"]
for name in families:
    run = runs[name]
    if {"greedy", "beam5"} <= run.keys():
        gain = {m: run["beam5"][m]["score"] - run["greedy"][m]["score"] for m in ("cider_d", "bleu_4")}
        rows.append(f"| {LABELS[name]} | {gain['cider_d']:+.1f} | {gain['bleu_4']:+.1f} |")
display(Markdown("\n".join(rows)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5))
shown = [name for name in families if "beam5" in runs[name]]
shown.sort(key=lambda name: runs[name]["beam5"]["cider_d"]["score"])
for place, name in enumerate(shown):
    score = runs[name]["beam5"]["cider_d"]
    left.plot([score["low"], score["high"]], [place, place], color="tab:blue")
    left.plot(score["score"], place, "o", color="tab:blue")
left.set_yticks(range(len(shown)), [LABELS[name] for name in shown])
left.set_xlabel("CIDEr-D, beam 5, with 95 % interval over images")
for name in shown:
    if "nll_by_epoch" in runs[name]:
        nll = runs[name]["nll_by_epoch"]
        right.plot(range(1, len(nll) + 1), nll, marker=".", label=LABELS[name])
right.set_xlabel("epoch")
right.set_ylabel("dev, nats a word")
right.legend(fontsize=7)
figure.tight_layout()

# %% [markdown]
# ## Complete features
#
# Today's recipe on EfficientNet-Lite2's grids, up to eight epochs, beam 5. What is special about these runs (a GPU, recompressed
# photographs, some not finished: their kept epoch is of fewer than eight) is in [RESULTS.md](RESULTS.md#complete-features-all-families-todays-recipe). METEOR was computed later
# from the captions of the runs. Minutes are those of a training with up to 23 others on the same GPU.

# %%
display(Markdown(table(COMPLETE, "beam5")))

# %% [markdown]
# What was tried to get better captions: sentences without pictures, averaged weights, self-critical training, ensembles.

# %%
display(Markdown(table(BETTER, "beam5")))

# %% [markdown]
# Three seeds against three (two where the row says so), over seeds and images (the Transformers without sentences and average are of another commit and GPU):

# %%
SEEDS = {
    "compare_c_updown_gru": "Up-Down over the post's model",
    "compare_c_sat_gru": "Show-Attend-Tell over the post's model",
    "compare_c_updown_sat": "Up-Down over Show-Attend-Tell",
    "compare_c_ute_updown": "Up-Down: sentences and average over neither",
    "compare_c_tte_t": "Transformer: sentences and average over neither",
    "compare_c_updown_tte": "Up-Down over the Transformer with sentences and average",
    "compare_c3_ud_updown": "Up-Down: three backbones and average over one backbone",
    "compare_c3_ud_ute": "Up-Down: three backbones and average over one with sentences and average",
    "compare_c_us_ute": "Up-Down: self-critical over cross-entropy",
    "compare_c3_us_ud": "Up-Down on three backbones: self-critical over cross-entropy, two seeds each",
}


def differences(labels: dict[str, str], tell: Callable[[dict], str]) -> str:
    lines = ["| | CIDEr-D | BLEU-4 |", "|---|---|---|"]
    for name, label in labels.items():
        cells = " | ".join(tell(runs[name]["paired"][metric]) for metric in ("cider_d", "bleu_4"))
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines)


display(Markdown(differences(SEEDS, lambda test: "{difference:+.1f} [{low:.1f}, {high:.1f}]".format(**test))))

# %%
def curves(names: list[str], labels: dict[str, str]) -> None:
    """Draw loss and greedy CIDEr-D by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 4.5))
    for place, name in enumerate(names):
        for panel, key in ((left, "nll_by_epoch"), (right, "cider_by_epoch")):
            style = "-" if place < 10 else "--"  # the eleventh line has the first one's colour
            epochs = range(1, len(runs[name][key]) + 1)
            panel.plot(epochs, runs[name][key], style, marker=".", label=labels[name])
    left.set(xlabel="epoch", ylabel="dev, nats a word")
    right.set(xlabel="epoch", ylabel="dev, CIDEr-D, greedy")
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()


families_complete = [name for name in COMPLETE if name.endswith("0") and name != "s0"]
curves([*families_complete, "c_ute0", "c_tte0", "c_ste0", "c_mte0"], COMPLETE | BETTER)

# %% [markdown]
# ## Three backbones
#
# EfficientNet-Lite0, EfficientNet-Lite2 and the partial InceptionV3 side by side, the photographs themselves, 2 CPU cores; one recipe for
# all families: averaged weights, one cycle over five epochs (the Transformers with smoothed labels, AdamW and dropout 0.3), seed 0 unless
# the row says otherwise. Commands, conditions and what the rows show: [RESULTS.md](RESULTS.md#three-backbones-all-families).

# %%
display(Markdown(table([name for name in THREE if name in runs], "beam5")))

# %%
curves([name for name in THREE if name.endswith("0") and "cider_by_epoch" in runs.get(name, {})], THREE)

# %% [markdown]
# ## What the papers report, on other features and data
#
# | | published |
# |---|---|
# | Show-Attend-Tell, soft | Flickr8k test, VGG: BLEU-4 19.5, METEOR 18.9; COCO 24.3, 23.9 |
# | Show-Attend-Tell, hard | Flickr8k test, VGG: BLEU-4 21.3, METEOR 20.3; COCO 25.0, 23.0 |
# | Up-Down | COCO, bottom-up regions: BLEU-4 36.2, CIDEr 113.5 |
# | Attentive Translator | COCO server, R-FCN objects: CIDEr 102.9 |
# | Meshed-Memory Transformer | COCO, bottom-up regions, self-critical: BLEU-4 39.1, METEOR 29.2, CIDEr 131.2 |
# | Adaptive attention | COCO, ResNet-152 fine-tuned: CIDEr 108.5 |
# | Topic-Guided | none quoted: the released evaluation saw the references |
# | the post | none |

# %% [markdown]
# ## What each flaw of the post costs
#
# The post's recipe and its draw of captions on Flickr8k's 6,000 training photographs (`data=flickr8k_sample`: 30,000
# captions, a fifth held out), two epochs at a constant 1e-3, no clipping, the last layer's bias at 0, seed 0; scored on
# the 1,000 dev photographs that no run saw. Greedy, unless the flaw is the decoding (S3 and "all of them" draw); under shifted
# targets the post's own loop takes the likeliest word, as START may then be said. p is over images, of one run each, and says nothing
# about other seeds: three seeds on complete features are in [RESULTS.md](RESULTS.md#what-each-flaw-of-the-post-costs).

# %%
ABLATIONS = {
    "repaired": ("abl_base", "greedy"),
    "S1 the GRU forgets its state": ("abl_s1", "greedy"),
    "S2 shifted targets": ("abl_s2", "greedy"),
    "S3 words drawn from softmax(exp(logits))": ("abl_base", "drawn"),
    "S4 split by caption": ("abl_s4", "greedy"),
    "S5 vocabulary of held-out captions too": ("abl_s5", "greedy"),
    "S9 linear output layers": ("abl_s9", "greedy"),
    "all of them": ("abl_all", "greedy"),
    "all but S3": ("abl_all", "likely"),
}


def change_table(rows: dict[str, tuple[str, str]]) -> str:
    base = runs[next(iter(rows.values()))[0]][next(iter(rows.values()))[1]]
    lines = ["| | CIDEr-D | against the first | p over images | BLEU-4 | words | commit | minutes |", "|---" * 8 + "|"]
    for label, (name, decoding) in rows.items():
        scores = runs[name][decoding]
        change = scores["cider_d"]["score"] - base["cider_d"]["score"]
        test = runs.get(f"compare_{name}_{decoding}")
        p = p_cell(test["paired"]["cider_d"]["p_value"]) if test else "–"
        lines.append(
            f"| {label} | {cell(scores['cider_d'])} | {change:+.1f} | {p} | {cell(scores['bleu_4'])} | "
            f"{scores['diversity']['mean_length']:.1f} | {runs[name]['commit']} | {runs[name].get('minutes', '–')} |"
        )
    return "\n".join(lines)


display(Markdown(change_table(ABLATIONS)))

# %% [markdown]
# ## Attention: doubly stochastic or not, hard or soft
#
# Show-Attend-Tell under the table's recipe, greedy. With the authors' weights, reward and moving-average baseline hard
# attention stayed uniform (entropy 0.9998 of the greatest possible); RESULTS.md has a row for each of the three.

# %%
ATTENTION = {
    "soft, doubly stochastic": ("sat_soft_before", "greedy"),
    "soft, without that term": ("sat_soft_w0", "greedy"),
    "hard, the authors' weights (6.4, 0.128)": ("sat_hard_w64", "greedy"),
    "hard, the cost under the expected context as baseline, 1 and 0.001": ("sat_hard_low", "greedy"),
    "hard, the same, 1 and 0.003": ("sat_hard_before", "greedy"),
    "soft, Adam at a constant 2e-4": ("sat_2e4", "greedy"),
}
display(Markdown(change_table(ATTENTION)))

# %% [markdown]
# ## The post's model: one epoch with three seeds, eight epochs with three seeds and two rates, scheduled sampling
#
# One epoch as a plain script has it (`model=gru_attention scheduler=none data.min_count=1 max_epochs=1`), greedy;
# eight epochs of `experiment=flickr8k` with a peak rate of 2e-3 and of 1e-3.

# %%
for names, decoding in (
    (("one_s0", "one_s1", "one_s2"), "greedy"),
    (("seed8", "seed8_s1", "seed8_s2", "seed8_1"), "greedy"),
    (("seed8", "seed8_s1", "seed8_s2", "seed8_1"), "beam3"),
    (("seed8", "seed8_s1", "seed8_s2", "seed8_1"), "beam5"),
    (("seed8_last", "seed8_s1_last", "seed8_s2_last"), "greedy"),
    (("seed8_last", "seed8_s1_last", "seed8_s2_last"), "beam5"),
    (("seed_new", "scheduled"), "greedy"),
    (("seed_new", "scheduled"), "beam5"),
):
    display(Markdown(f"**{decoding}**\n\n" + table(names, decoding)))

# %% [markdown]
# ## Longer, and self-critical
#
# Topic-Guided for six epochs instead of four, and what CIDEr-D as the reward makes of that and of the Transformer (one epoch, on
# one core).

# %%
others = [
    name
    for name in ("topic_best", "scst", "transformer", "scst3")
    if {"greedy", "beam5"} & runs.get(name, {}).keys()
]
for decoding in ("greedy", "beam5"):
    display(Markdown(f"**{decoding}**\n\n" + table(others, decoding)))

# %% [markdown]
# ## Paired tests
#
# Differences over the same 1,000 images and how often chance makes one as large (`captioning.evaluate compare=[a,b]`). They are of one
# run each and say nothing about other seeds.

# %%
TESTS = {
    "compare_scst3_greedy": "self-critical against its Transformer, greedy",
    "compare_scst3_beam5": "the same, beam 5",
    "compare_seed8_beam5": "eight epochs, seed 0, beam 5 against greedy",
    "compare_seed8_s1_beam5": "the same, seed 1",
    "compare_seed8_s2_beam5": "the same, seed 2",
    "compare_c3_ens4m_ens4": "three backbones, ensembles: two self-critical members over cross-entropy alone",
}
display(Markdown(differences(TESTS, lambda test: f"{test['difference']:+.1f} (p {p_cell(test['p_value'])})")))

# %% [markdown]
# ## What the captions are like
#
# Words a caption, different words used, captions that no training caption equals, captions ending in a function word.

# %%
rows = ["| | words | vocabulary | novel | bad endings |", "|---|---|---|---|---|"]
for name in dict.fromkeys([*families, *others]):
    said = runs[name].get("beam5", runs[name].get("greedy"))["diversity"]
    shares = f"{100 * said['novel']:.1f} % | {100 * said['bad_endings']:.1f} %"
    rows.append(
        f"| {(LABELS | OTHERS).get(name, name)} | {said['mean_length']:.1f} | {said['vocabulary']} | {shares} |"
    )
display(Markdown("\n".join(rows)))
