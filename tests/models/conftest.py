"""Settings of this folder's tests."""

import torch
from hypothesis import settings

# Tensors here are tiny: a second thread only waits for the first. Examples are the same in every run, so that
# a failure seen once can be seen again.
torch.set_num_threads(1)
settings.register_profile("models", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("models")
