"""From a model's name to its files, as a source of weights or as a description alone."""

from solm.backends.cpu.files.config_spec import from_config
from solm.backends.cpu.files.gguf_file import GgufFile
from solm.backends.cpu.files.gguf_spec import from_gguf
from solm.backends.cpu.files.safetensors_folder import SafetensorsFolder
from solm.backends.cpu.files.source import WeightSource
from solm.backends.cpu.files.spec import ModelSpec
from solm.backends.gguf_header import read_header
from solm.backends.names import folder_of, gguf_of
from solm.core.files import read_object


def source_of(name: str, revision: str | None = None) -> WeightSource:
    """The files of a model: a GGUF file, or a folder of safetensors, which of a hub id is downloaded.

    Raises `SolmError` where there is no such model, `DamagedFileError` for files that cannot be, and
    `UnsupportedModelError` for a family that the cpu backend does not know.
    """
    gguf = gguf_of(name)
    return SafetensorsFolder(folder_of(name, revision)) if gguf is None else GgufFile(gguf)


def spec_of(name: str, revision: str | None = None) -> ModelSpec:
    """The cpu backend's description of a model, from a GGUF file's header or a folder's config.json alone. Raises as
    `source_of` does."""
    gguf = gguf_of(name)
    if gguf is not None:
        return from_gguf(read_header(gguf))
    path = folder_of(name, revision) / "config.json"
    return from_config(read_object(path), path, name)
