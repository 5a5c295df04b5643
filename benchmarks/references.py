"""What our training step is measured against: the post's model, forward and loss, in two common forms.

`PostLoop` is the loop of Keydana's post (2018) and of the TensorFlow notebook behind it: regions are
projected once, everything else at every word, padding included. `OrdinaryLoop` is what a good programmer
writes without giving it more thought: `torch.nn.GRUCell`, the regions' keys computed once, both output layers
after the loop. Neither drops anything out. Sizes are the post's: 64 regions of 2048, 256, 512, 5,000 words.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.vocabulary import PAD

FEATURES, PROJECTED, ATTENTION, EMBEDDING, HIDDEN, VOCABULARY = 2048, 256, 512, 256, 512, 5000


class PostLoop(nn.Module):
    """Keys, output layers and loss at every word, over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, PROJECTED)
        self.key, self.query = nn.Linear(PROJECTED, ATTENTION), nn.Linear(HIDDEN, ATTENTION)
        self.energy = nn.Linear(ATTENTION, 1)
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.gru = nn.GRU(PROJECTED + EMBEDDING, HIDDEN, batch_first=True)
        self.hidden, self.output = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Compute the loss of captions (B, T) whose regions are (B, R, D)."""
        regions = self.project(features).relu()  # (B, R, 256)
        state = regions.new_zeros(1, len(tokens), HIDDEN)
        total = torch.zeros((), device=tokens.device)
        for t in range(1, tokens.shape[1]):
            energy = self.energy(torch.tanh(self.key(regions) + self.query(state[0])[:, None]))
            context = (energy.softmax(1) * regions).sum(1)  # (B, 256)
            word = torch.cat([context, self.embedding(tokens[:, t - 1])], -1)
            out, state = self.gru(word[:, None], state.to(word.dtype))
            logits = self.output(self.hidden(out[:, 0]))
            loss = functional.cross_entropy(logits.float(), tokens[:, t], reduction="none")
            total = total + (loss * (tokens[:, t] != PAD)).mean()
        return total / tokens.shape[1]


class OrdinaryLoop(nn.Module):
    """GRUCell, keys once, output layers after the loop, padding ignored by the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, PROJECTED)
        self.key, self.query = nn.Linear(PROJECTED, ATTENTION), nn.Linear(HIDDEN, ATTENTION)
        self.energy = nn.Linear(ATTENTION, 1, bias=False)
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.cell = nn.GRUCell(PROJECTED + EMBEDDING, HIDDEN)
        self.output = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, VOCABULARY))

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Compute the loss of captions (B, T) whose regions are (B, R, D)."""
        regions = self.project(features).relu()
        keys, words = self.key(regions), self.embedding(tokens[:, :-1])
        state, states = words.new_zeros(len(tokens), HIDDEN), []
        for t in range(words.shape[1]):
            weights = self.energy(torch.tanh(keys + self.query(state)[:, None])).softmax(1)
            context = (weights * regions).sum(1)
            state = self.cell(torch.cat([context, words[:, t].to(context)], -1), state)
            states.append(state)
        logits = self.output(torch.stack(states, 1)).float()  # (B, T, V)
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)
