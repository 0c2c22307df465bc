"""Tensors of every type in the engine's layout, against gguf's own reading of the same blocks."""

import shutil

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as TensorType

from helpers.gguf_files import ALL_TYPES, WIDE, read_packed, repacked, tensor_of, values_of, weights_of, write_gguf
from solm.backends.cpu.files.layout import INT4, INT8, NESTED, PRECISIONS, Form, Target, layout_of
from solm.backends.cpu.files.repack import dequantise, repack
from solm.backends.cpu.files.sources import QUANTISED, GgufFile, Tensor, half_split
from solm.backends.cpu.library import library
from solm.core.errors import DamagedFileError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def numbers_and_grid(parts: dict[str, np.ndarray], form: Form, inputs: int, outputs: int):
    numbers = read_packed(parts["data"], inputs, outputs, form.numbers.bits)
    return numbers, parts["grid"].view(np.float16).reshape(inputs // form.numbers.group, -1, outputs)


@pytest.mark.parametrize("outputs", [64, 128, 192, 320, 640])
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_numbers_are_exact_and_steps_are_rounded_once(kind, outputs):
    form, tensor = Form(Target.OWN, QUANTISED[kind]), tensor_of(kind, outputs, 512)
    numbers, grid = numbers_and_grid(repacked([tensor], form), form, 512, outputs)
    assert grid.shape[1] == (1 if form.numbers.centre >= 0 else 2)
    found, wanted = weights_of(numbers, grid, form.numbers.group, form.numbers.centre), values_of(tensor)
    step = np.abs(grid[:, 0].T.astype(np.float64)).repeat(form.numbers.group, 1)
    # Each of the two is off by 2^-11 of itself at most, or by half of the smallest float16.
    lowest = form.numbers.centre * step if grid.shape[1] == 1 else np.abs(grid[:, 1].T).repeat(form.numbers.group, 1)
    allowed = 2.0**-11 * (step * np.abs(numbers - max(form.numbers.centre, 0)) + lowest * (form.numbers.centre < 0))
    assert (np.abs(found - wanted) <= allowed + 2.0**-25 * 256).all()
    of_float16 = "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"
    if kind.name in of_float16:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7)  # their scales are float16 already


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
def test_dequantised_rows_are_what_gguf_reads(kind):
    tensor = tensor_of(kind, 24, 512)
    np.testing.assert_allclose(dequantise(library(), tensor), values_of(tensor), rtol=1e-5, atol=1e-7)
    rows = [5, 0, 23, 5]
    np.testing.assert_array_equal(dequantise(library(), tensor, rows), dequantise(library(), tensor)[rows])
    ordered = tensor_of(kind, 24, 512, order=half_split(3, 8, 8))
    np.testing.assert_array_equal(dequantise(library(), ordered), dequantise(library(), tensor)[half_split(3, 8, 8)])


@pytest.mark.parametrize("kind", ALL_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("outputs", [96, 128])
def test_int8_has_a_scale_per_output(kind, outputs):
    tensor = tensor_of(kind, outputs, 256)
    parts, wanted = repacked([tensor], INT8), values_of(tensor)
    stride = -(-outputs // 64) * 64
    rows = parts["data"].reshape(256, stride // 64, 4, 4, 4).swapaxes(2, 3).reshape(256, stride)
    assert not rows[:, outputs:].any()
    scale = parts["scale"].view(np.float32)
    np.testing.assert_allclose(scale, np.abs(wanted).max(1) / 127, rtol=1e-5)
    weights = (rows[:, :outputs].T.astype(int) - 128) * scale[:, None]
    assert (np.abs(weights - wanted) <= 0.501 * scale[:, None]).all()


@pytest.mark.parametrize("size", [0.05, 0.001, 0.00001])
def test_nested_numbers_are_as_fine_as_8_bits_and_their_upper_halves_a_grid(size):
    """Also where steps are below the normal float16 numbers."""
    tensor = tensor_of(TensorType.F32, 128, 256)
    tensor = Tensor(
        "t", tensor.type, tensor.shape, (tensor.data.view(np.float32) * np.float32(size / 0.05)).view(np.uint8)
    )
    numbers, grid = numbers_and_grid(repacked([tensor], NESTED), NESTED, 256, 128)
    weight = values_of(tensor)
    step = grid[:, 0].T.astype(np.float64).repeat(32, 1)
    unit = 2.0**-25  # half of the smallest float16
    assert (
        np.abs(weights_of(numbers, grid, 32, -1) - weight) <= 0.5 * step + 256 * unit + 2.0**-11 * np.abs(weight)
    ).all()
    upper = weights_of(numbers // 16 * 16 + 7.5, grid, 32, -1)
    assert (np.abs(upper - weight) <= 8.1 * step + 256 * unit + 2.0**-11 * np.abs(weight)).all()


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.BF16, TensorType.Q8_0, TensorType.Q6_K], ids=str)
def test_int4_rounds_to_steps_of_the_largest_value(kind):
    tensor = tensor_of(kind, 128, 256)
    numbers, grid = numbers_and_grid(repacked([tensor], INT4), INT4, 256, 128)
    weight = values_of(tensor).astype(np.float64)
    step = grid[:, 0].T.astype(np.float64).repeat(32, 1)
    largest = np.abs(weight).reshape(128, 8, 32).max(2).repeat(32, 1)
    np.testing.assert_allclose(np.abs(step), largest / 8, rtol=2e-3)
    away = np.abs(weights_of(numbers, grid, 32, 8) - weight)
    assert (away <= np.where(weight / step > 7, 1.01, 0.51) * np.abs(step)).all()  # there is a -8, and no 8
    assert (away <= 0.51 * np.abs(step)).mean() > 0.9


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_is_repacked_site_by_site(tmp_path, precision):
    """q, k and v of different types are parts of their own; what every part holds are the file's weights."""
    kinds = {"q": TensorType.Q4_K, "k": TensorType.Q4_K, "v": TensorType.Q6_K, "down": TensorType.F16}
    path = tmp_path / "mixed.gguf"
    write_gguf(path, "llama", lambda name: kinds.get(name, TensorType.Q5_0), **WIDE)
    source, built = GgufFile(path), library()
    layout = layout_of(source, precision)
    names = [[part.tensors for part in parts] for parts in layout.layers[0].values()]
    if precision == "auto":
        assert names == [[("q", "k"), ("v",)], [("out",)], [("gate", "up")], [("down",)]]
        assert set(layout.forms()) == {"4 bits", "5 bits", "6 bits", "int8"}
    elif precision == "int4":
        assert names == [[("q", "k"), ("v",)], [("out",)], [("gate", "up")], [("down",)]]
        assert set(layout.forms()) == {"4 bits"}
    else:
        assert names == [[("q", "k", "v")], [("out",)], [("gate", "up")], [("down",)]]
        assert set(layout.forms()) == {precision}
    memory = repack(source, layout, built, 2)
    for number, part in layout.parts():
        tensors = [source.tensor(name, number) for name in part.tensors]
        for name, wanted in repacked(tensors, part.form).items():
            at = part.places[name]
            assert at % 64 == 0
            np.testing.assert_array_equal(memory[at : at + len(wanted)], wanted, err_msg=f"{part.tensors} {name}")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "inf.gguf"
    write_gguf(path, "llama", lambda name: TensorType.Q8_0, **WIDE)
    tensor = GgufFile(path).tensor("up", 1)
    content = bytearray(path.read_bytes())
    at = content.index(tensor.data.tobytes())
    content[at + 272 * 3 : at + 272 * 3 + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    source, built = GgufFile(path), library()
    for precision in ("auto", "nested", "int8", "int4"):
        layout = layout_of(source, precision)
        with pytest.raises(DamagedFileError, match=r"inf.gguf is damaged: blk.1.ffn_up.weight: row 3 has values that"):
            repack(source, layout, built, 2)
