"""What each head of this package makes of one document's rows, written plainly: the reference for every file
in ``configs/head``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from reader_reference import plain_echo_state, plain_minimal, plain_recurrent
from torch import Tensor, nn

from textbed.heads.attention import Attention, LabelAttention, WeightedMean
from textbed.heads.base import Head
from textbed.heads.convolutional import Convolutional
from textbed.heads.layers import Layered
from textbed.heads.minimal import MinRecurrent
from textbed.heads.pooling import Hierarchical, LogSumExp, Pooling, PowerMean, RandomProjection
from textbed.heads.recurrent import Recurrent
from textbed.heads.reservoir import EchoState

Plain = Callable[[Tensor], Tensor]


def plain_of(head: Head) -> Plain:
    """A function of the rows of one document (n, D), n at least 1, to (H,), with the head's own weights."""
    return PLAIN[type(head)](head)


def plain_pooling(head: Pooling) -> Plain:
    reductions = {
        "sum": lambda rows: rows.sum(0),
        "mean": lambda rows: rows.mean(0),
        "max": lambda rows: rows.amax(0),
        "min": lambda rows: rows.amin(0),
    }
    return lambda rows: torch.cat([reductions[mode](rows) for mode in head.modes])


def plain_hierarchical(head: Hierarchical) -> Plain:
    def plain(rows: Tensor) -> Tensor:
        starts = range(max(len(rows) - head.window + 1, 1))
        return torch.stack([rows[start : start + head.window].mean(0) for start in starts]).amax(0)

    return plain


def plain_power_mean(head: PowerMean) -> Plain:
    def mean_of(rows: Tensor, power: float) -> Tensor:
        if math.isinf(power):
            return rows.amax(0) if power > 0 else rows.amin(0)
        raised = rows.abs() ** power if power % 2 == 0 else rows.sign() * rows.abs() ** power
        mean = raised.mean(0)
        return mean.sign() * mean.abs() ** (1 / power)

    return lambda rows: torch.cat([mean_of(rows, power) for power in head.powers])


def plain_log_sum_exp(head: LogSumExp) -> Plain:
    scale = head.temperature
    return lambda rows: scale * ((rows / scale).logsumexp(0) - math.log(len(rows)))


def plain_projection(head: RandomProjection) -> Plain:
    return lambda rows: (rows @ head.weight.t()).amax(0)


def plain_weighted_mean(head: WeightedMean) -> Plain:
    def plain(rows: Tensor) -> Tensor:
        weights = head.score(rows).sigmoid()
        return (weights * rows).sum(0) / weights.sum(0)

    return plain


def plain_attention(head: Attention) -> Plain:
    *layer, queries = [part.weight for part in head.score if isinstance(part, nn.Linear)]

    def plain(rows: Tensor) -> Tensor:
        hidden = (rows @ layer[0].t()).tanh() if layer else rows
        return torch.cat([(hidden @ query).softmax(0) @ rows for query in queries])

    return plain


def plain_label_attention(head: LabelAttention) -> Plain:
    window = len(head.window)
    reach = window // 2

    def plain(rows: Tensor) -> Tensor:
        cosine = F.cosine_similarity(rows.unsqueeze(1), head.labels, dim=2)  # (n, C)
        scores = []
        for token in range(len(rows)):
            near = head.bias
            for place in range(window):
                if 0 <= token + place - reach < len(rows):
                    near = near + head.window[place] * cosine[token + place - reach]
            scores.append(near.relu().max())
        return torch.stack(scores).softmax(0) @ rows

    return plain


def plain_convolutional(head: Convolutional) -> Plain:
    def plain(rows: Tensor) -> Tensor:
        parts = []
        for weight, bias in zip(head.weights, head.bias.chunk(len(head.weights)), strict=True):
            border = len(weight) - 1
            maps = F.conv1d(rows.t().unsqueeze(0), weight.permute(2, 1, 0), bias, padding=border)
            parts.append(maps.squeeze(0).relu().amax(1))
        return torch.cat(parts)

    return plain


def plain_layered(head: Layered) -> Plain:
    squash = {nn.ReLU: torch.relu, nn.Tanh: torch.tanh, nn.GELU: F.gelu}[type(head.layers[1])]

    def plain(rows: Tensor) -> Tensor:
        values = plain_of(head.head)(rows)
        for layer in head.layers[::3]:
            values = squash(layer.weight @ values + layer.bias)
        return values

    return plain


PLAIN: dict[type, Callable[..., Plain]] = {
    Pooling: plain_pooling,
    Hierarchical: plain_hierarchical,
    PowerMean: plain_power_mean,
    LogSumExp: plain_log_sum_exp,
    RandomProjection: plain_projection,
    WeightedMean: plain_weighted_mean,
    Attention: plain_attention,
    LabelAttention: plain_label_attention,
    Convolutional: plain_convolutional,
    Layered: plain_layered,
    Recurrent: plain_recurrent,
    MinRecurrent: plain_minimal,
    EchoState: plain_echo_state,
}
