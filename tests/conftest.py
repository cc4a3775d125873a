import pytest
import torch
from hypothesis import HealthCheck, settings

from bdh import BDH, BDHConfig

# a slow machine must not fail an invariant; the examples are the same at every run
settings.register_profile(
    "repo", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")
torch.set_num_threads(1)  # tests run in parallel processes

TINY = BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, vocab_size=256, dropout=0.0)


@pytest.fixture
def tiny() -> BDH:
    """A model whose activations are far from zero, so that errors show."""
    model = BDH.from_seed(TINY, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model
