"""The policy network: a causal transformer over observations with relative positions and bounded memory."""

from typing import NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import nn
from torch.nn import functional as F

SCALARS = 8
"""Numbers of an observation besides states: progress, whether attention is controllable, three targets, and what was
spent on average above each of them."""


class NetworkConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a policy network. The default width is half of that in arXiv 2605.10875."""

    base_hidden: int = Field(ge=1)
    actions: int = Field(ge=1)
    width: int = Field(256, ge=8, le=4096)
    heads: int = Field(4, ge=1)
    memory: int = Field(64, ge=1, le=4096)
    """Past steps that a step attends to, besides itself."""
    scalar_width: int = Field(64, ge=1)
    previous_width: int = Field(32, ge=1)
    temperature: float = Field(1.3, gt=0)

    @model_validator(mode="after")
    def _check_width(self) -> "NetworkConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Features(NamedTuple):
    """Observations of N rows over T steps: hidden, embedding [N, T, H], scalars [N, T, 8], previous [N, T] int64."""

    hidden: torch.Tensor
    embedding: torch.Tensor
    scalars: torch.Tensor
    previous: torch.Tensor


class Memory(NamedTuple):
    """Keys and values of the past steps: [N, heads, M, width / heads], M at most `NetworkConfig.memory`."""

    keys: torch.Tensor
    values: torch.Tensor


class PolicyNetwork(nn.Module):
    """Observations to logits over actions, one causal pass for any number of steps.

    Positions are relative (a learned bias per head and distance) and the memory is bounded, so that a run of any length
    can be continued. Hidden states and embeddings are layer-normalised before the projection, as their scale differs
    between families.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.scalars = nn.Sequential(
            nn.Linear(SCALARS, config.scalar_width), nn.GELU(), nn.Linear(config.scalar_width, config.scalar_width)
        )
        self.previous = nn.Embedding(config.actions, config.previous_width)
        inputs = 2 * config.base_hidden + config.scalar_width + config.previous_width
        self.project = nn.Linear(inputs, width)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.distance = nn.Parameter(torch.zeros(config.heads, config.memory + 1))
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.actions)
        self.budget_head = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, config.actions))
        # A new policy is uniform for all inputs.
        for last in (*self.head.parameters(), *self.budget_head[-1].parameters()):
            nn.init.zeros_(last)

    def start(self, rows: int, device: torch.device) -> Memory:
        config = self.config
        empty = torch.zeros(rows, config.heads, 0, config.width // config.heads, device=device)
        return Memory(empty, empty)

    def forward(self, features: Features, memory: Memory) -> tuple[torch.Tensor, Memory]:
        """Logits [N, T, A] float32, divided by the temperature, and the memory after the last step."""
        config, dtype = self.config, self.project.weight.dtype
        normed = [F.layer_norm(part.to(dtype), part.shape[-1:]) for part in (features.hidden, features.embedding)]
        scalars = features.scalars.to(dtype)
        x = self.project(torch.cat([*normed, self.scalars(scalars), self.previous(features.previous)], dim=-1))
        attended, memory = self._attend(self.attention_norm(x), memory)
        x = x + attended
        x = x + self.mlp(self.mlp_norm(x))
        logits = self.head(self.norm(x)) + self.budget_head(scalars[..., 2:5])
        return logits.float() / config.temperature, memory

    def _attend(self, x: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, Memory]:
        heads, limit = self.config.heads, self.config.memory
        query, key, value = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat([memory.keys, key], 2), torch.cat([memory.values, value], 2)
        steps, total = query.shape[2], keys.shape[2]
        distance = (torch.arange(total - steps, total)[:, None] - torch.arange(total)).to(x.device)
        bias = self.distance[:, distance.clamp(0, limit)]
        bias = bias.masked_fill((distance < 0) | (distance > limit), -torch.inf)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        return self.merge(mixed.transpose(1, 2).flatten(2)), Memory(keys[:, :, -limit:], values[:, :, -limit:])
