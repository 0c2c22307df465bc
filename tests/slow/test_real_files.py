"""Real GGUF files as sources of weights, against what transformers reads of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from solm.backends.cpu.files.repack import dequantise
from solm.backends.cpu.files.sources import GgufFile
from solm.backends.cpu.library import library
from solm.backends.names import BUILTIN, gguf_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def compare(path: Path, model) -> None:
    """Every tensor, in its order, is the model's parameter."""
    source, parameters = GgufFile(path), dict(model.named_parameters())
    np.testing.assert_allclose(source.spec.rope.inverse_frequencies, model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert source.spec.epsilon == pytest.approx(model.config.rms_norm_eps, rel=1e-6)
    assert source.spec.context == model.config.max_position_embeddings
    for layer in (None, *range(source.spec.layers)):
        for name, place in source.spec.places(layer).items():
            tensor, expected = source.tensor(name, layer), parameters[place.transformers].detach().float().numpy()
            matrix = len(tensor.shape) == 2
            some = np.arange(0, tensor.outputs, 101 if layer is None else 1)
            found = dequantise(library(), tensor, some) if matrix else tensor.floats()
            np.testing.assert_allclose(found, expected[some] if matrix else expected, rtol=1e-5, atol=1e-6)


def test_the_built_in_file_is_the_model_that_transformers_reads(real_model):
    path = gguf_of(BUILTIN)
    assert path is not None
    compare(path, real_model[0])
