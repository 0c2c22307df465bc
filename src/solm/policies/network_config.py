"""Sizes of the policy network."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class NetworkConfig(BaseModel):
    """Sizes of a policy network. The default width is half of that in arXiv 2605.10875."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    actions: int = Field(ge=1)
    width: int = Field(256, ge=8, le=4096)
    heads: int = Field(4, ge=1)
    memory: int = Field(64, ge=1, le=4096)
    """Past steps that a step attends to, besides itself."""
    scalar_width: int = Field(64, ge=1)
    previous_width: int = Field(32, ge=1)
    temperature: float = Field(1.3, gt=0)
    budget_prior: bool = True
    """Add the log-odds of `policies.protocol.budget_prior` to the network's output."""

    @model_validator(mode="after")
    def _check_width(self) -> "NetworkConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self
