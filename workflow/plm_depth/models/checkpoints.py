"""Checkpoint files: plain JSON, safetensors and weights-only pickles in, whole files out; code is never loaded.

Reading is strict. A checkpoint must hold exactly the tensors of its architecture; the few that may be there without a
use, or be absent without a loss, are named by the adapter. A wrong shape, a NaN or an infinity names the tensor.
"""

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plm_depth.models.base import CheckpointError
from plm_depth.tables import replacing

log = logging.getLogger("models.checkpoints")

DTYPES = ("float32", "float64", "bfloat16", "float16")
# Sizes in the config files of the families, and the largest that is taken for one.
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "embed_dim")
_SIZES = {
    **dict.fromkeys(_BLOCKS, 1000),
    **dict.fromkeys(_WIDTHS, 10**6),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 10**5),
    **dict.fromkeys(("intermediate_size", "n_inner", "vocab_size", "max_position_embeddings", "n_positions"), 10**7),
}
_HARMLESS = 10**9  # parameters
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


# ---------------------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict:
    """Return a JSON object of a checkpoint (its ``config.json``), as plain data.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder of this layout has one: download it again, or correct the path"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object was expected, it holds {type(value).__name__}; download it again")
    return value


def read_config(path: Path) -> dict:
    """Return the ``config.json`` of a checkpoint, its sizes checked before a module of that size is built.

    Raises:
        CheckpointError: see ``read_json``; a size that is no whole number of a model's range; or more parameters than
            the weight files beside it have room for.
    """
    config = read_json(path)
    for key, most in _SIZES.items():
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise CheckpointError(
                f"{path}: {key} is {value!r}; expected a whole number from 1 to {most}: correct it or download it again"
            )
    blocks, width = (next((config[k] for k in keys if config.get(k)), 0) for keys in (_BLOCKS, _WIDTHS))
    stored = sum(file.stat().st_size for file in path.parent.rglob("*") if file.suffix in _WEIGHTS and file.is_file())
    asked = 2 * blocks * width**2  # two square matrices a block, at one byte each: less than any has
    if asked > max(stored, _HARMLESS):  # a smaller one is built and found wanting tensor by tensor
        raise CheckpointError(
            f"{path}: {blocks} blocks of width {width} in the config, but the weights beside it have {stored} bytes; "
            "are both of one checkpoint, and whole?"
        )
    return config


def setting(config: Mapping[str, object], path: Path, *names: str, default: object = None) -> object:
    """Return the value of the first of ``names`` that a config has, else ``default``.

    Raises:
        CheckpointError: none of the names is there and there is no default.
    """
    for name in names:
        if config.get(name) is not None:
            return config[name]
    if default is None:
        raise CheckpointError(f"{path}: no {' or '.join(map(repr, names))}; it has {sorted(config)}: download it again")
    return default


def settings(
    config: Mapping[str, object], path: Path, needed: Iterable[str], defaults: Mapping[str, object]
) -> dict[str, object]:
    """Return the values of a config under their names: those that it must have, and those that have a default.

    Raises:
        CheckpointError: one of ``needed`` is not there.
    """
    found = {name: setting(config, path, name) for name in needed}
    return found | {name: setting(config, path, name, default=value) for name, value in defaults.items()}


def check_settings(
    config: Mapping[str, object], expected: Mapping[str, tuple[object, ...]], path: Path, family: str
) -> None:
    """Refuse a config of another architecture or family.

    Args:
        config: the config.
        expected: allowed values by key; None among them allows that the key is absent.
        path: of the config.
        family: named in the error.
    Raises:
        CheckpointError: naming the key, its value and what the family has.
    """
    for key, allowed in expected.items():
        if config.get(key) not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {config.get(key)!r}, but {family} has {allowed[0]!r}; is this a checkpoint of "
                "another family?"
            )


def hub_files(folder: Path, *beside: str) -> list[Path]:
    """Return the files of a folder as on the hub: ``config.json``, those of the names given, and the weights.

    Raises:
        CheckpointError: see ``weight_files``.
    """
    return [*(folder / name for name in ("config.json", *beside)), *weight_files(folder, with_index=True)]


def only_file(files: Sequence[Path], folder: Path, what: str) -> Path:
    """Return the one file among ``files``.

    Raises:
        CheckpointError: there is none, or there are several; names the folder and what was expected.
    """
    if len(files) != 1:
        names = [path.name for path in files]
        raise CheckpointError(f"{folder}: one {what} was expected, there are {len(files)}: {names}")
    return files[0]


def weight_files(folder: Path, *, with_index: bool = False) -> list[Path]:
    """Return the weight files of a folder: safetensors before pickles, shards in the order of their names.

    Args:
        folder: the checkpoint.
        with_index: whether the index of sharded weights is returned too, first.

    Raises:
        CheckpointError: there are none, or a shard of the index is not there.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a folder with config.json and weights was expected")
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = [folder / shard for shard in sorted(set(_weight_map(index).values()))]
            if missing := [shard.name for shard in shards if not shard.is_file()]:
                raise CheckpointError(f"{index}: names {missing}, which are not in the folder; download them")
            return [index, *shards] if with_index else shards
    there = sorted(path.name for path in folder.iterdir())
    raise CheckpointError(
        f"{folder}: neither model.safetensors nor pytorch_model.bin (or their shards); it has {there}. Download "
        "the weights"
    )


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise CheckpointError(f"{index}: no 'weight_map' of tensor names to file names; download it again")
    if outside := sorted({shard for shard in found.values() if Path(shard).name != shard}):
        raise CheckpointError(f"{index}: {outside} are not names of files in the same folder; download it again")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder by name, on the CPU, in the stored dtype, mapped from disk where possible.

    Raises:
        CheckpointError: no file, a truncated or corrupt one, a pickle that holds more than tensors, or shards that
            disagree with their index.
    """
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
        if twice := sorted(set(found) & set(tensors)):
            raise CheckpointError(f"{path}: {_some(twice)} stand in another shard too")
        tensors.update(found)
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file() and files[0].suffix == Path(name).suffix and files != [folder / name]:
            expected = set(_weight_map(index))
            if expected != set(tensors):
                raise CheckpointError(
                    f"{index}: lists {len(expected)} tensors, the shards hold {len(tensors)}; only in the index: "
                    f"{_some(expected - set(tensors))}; only in the shards: "
                    f"{_some(set(tensors) - expected)}. Download them again"
                )
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file.

    Raises:
        CheckpointError: missing, truncated or corrupt.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); download it again") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled flat state dict; nothing but tensors and plain containers is ever unpickled.

    Raises:
        CheckpointError: missing, truncated, holding code or other objects (named), or not a flat dict of tensors.
    """
    return check_flat(unpickle(path), path)


def unpickle(path: Path) -> object:
    """Return what a pickle holds, provided that it is tensors and plain containers only.

    Raises:
        CheckpointError: missing, truncated, or holding anything else, which is named and not loaded.
    """
    try:
        # Mapping keeps a large file out of memory; files older than the zip format cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise refused_pickle(path, error) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch file ({error}); download it again") from error


def refused_pickle(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a pickle that torch refused, naming the object that it holds."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f"it holds {named.group(1)}" if named else f"torch says: {str(error).splitlines()[0]}"
    return CheckpointError(
        f"{path}: refused, a pickle with tensors only was expected, but {what}. Unpickling such an object can run "
        "code; use the safetensors file of this checkpoint"
    )


def check_flat(state: object, path: Path) -> dict[str, Tensor]:
    """Return a state dict, checked to be one of tensors by name.

    Raises:
        CheckpointError: it is anything else.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: a dict of tensors was expected, it holds {type(state).__name__}")
    if others := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: a dict of tensors was expected; {_some(others)} are none")
    return dict(state)


# ---------------------------------------------------------------------------------------------------------- filling


def cast_parameters(module: torch.nn.Module, dtype: str, *, also: str | None = None) -> None:
    """Cast the parameters of a module in place; buffers (rotary frequencies) keep their dtype.

    Below float32 only the weights and biases of linear maps are cast: embeddings and norms stay float32, so that the
    residual stream does. A linear map that shares its matrix with an embedding stays float32 too.

    Args:
        module: changed in place.
        dtype: one of ``DTYPES``.
        also: regular expression (whole names) of further parameters that are matrices of products.
    Raises:
        CheckpointError: a dtype that is not one of ``DTYPES``.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    wanted = getattr(torch, dtype)
    if wanted in (torch.float32, torch.float64):
        chosen = list(module.parameters())
    else:
        kept = {id(p) for m in module.modules() if not isinstance(m, torch.nn.Linear) for p in m.parameters(False)}
        linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
        chosen = [p for m in linear if id(m.weight) not in kept for p in m.parameters(recurse=False)]
        chosen += [p for name, p in module.named_parameters() if also is not None and re.fullmatch(also, name)]
    for parameter in chosen:
        parameter.data = parameter.data.to(wanted)


def filled(
    module: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    where: Path,
    *,
    dtype: str,
    also: str | None = None,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> torch.nn.Module:
    """Return the module with its matrices in ``dtype`` and its values from ``tensors``, without gradients.

    See ``cast_parameters`` (dtype, also) and ``fill`` (tensors, where, ignored, optional).
    """
    cast_parameters(module, dtype, also=also)
    fill(module, tensors, where, ignored=ignored, optional=optional)
    return module.requires_grad_(False)


@torch.no_grad()
def fill(
    module: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    where: Path,
    *,
    ignored: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Copy tensors into a module; every one of either side must have its counterpart.

    Args:
        module: the target; tied parameters may stand under one name or under all, then with equal values.
        tensors: names as in ``module.state_dict()``.
        where: the file or folder named in errors.
        ignored: regular expressions (whole names) of tensors that may be in the file and have no use.
        optional: regular expressions (whole names) of tensors that may be absent because nothing here reads them;
            they are set to zero.
    Raises:
        CheckpointError: names missing or unexpected, a wrong shape, NaN or inf, tied tensors that differ; all are told
            in one message.
    """
    target = dict(module.state_dict(keep_vars=True))
    used = {name: tensor for name, tensor in tensors.items() if not _matches(name, ignored)}
    problems = []
    aliases: dict[int, list[str]] = {}
    for name, value in target.items():
        aliases.setdefault(id(value), []).append(name)
    absent = [names for names in aliases.values() if not any(name in used for name in names)]
    missing = [names[0] for names in absent if not _matches(names[0], optional)]
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if unexpected := sorted(set(used) - set(target)):
        problems.append(f"unexpected: {_some(unexpected)}")
    for name in sorted(set(used) & set(target)):
        if used[name].shape != target[name].shape:
            problems.append(f"{name} has shape {tuple(used[name].shape)}, expected {tuple(target[name].shape)}")
        elif target[name].is_floating_point() and not used[name].is_floating_point():
            problems.append(f"{name} holds {str(used[name].dtype).removeprefix('torch.')}, expected floating numbers")
        elif not torch.isfinite(used[name]).all():
            problems.append(f"{name} holds NaN or inf")
    for names in aliases.values():
        given = [name for name in names if name in used]
        if any(not torch.equal(used[given[0]], used[name]) for name in given[1:]):
            problems.append(f"{' and '.join(given)} are one matrix in this architecture, but differ")
    if problems:
        raise CheckpointError(
            f"{where}: not a checkpoint of this architecture. " + "; ".join(problems[:12]) + ". Was it meant for "
            "another family, or was the download cut?"
        )
    for names in absent:
        target[names[0]].zero_()
    for name in set(used) & set(target):
        target[name].copy_(used[name])


def one_copy(tensors: dict[str, Tensor], pattern: str, where: Path) -> Tensor | None:
    """Remove all tensors whose whole name matches ``pattern`` and return the one value they share, or None.

    Raises:
        CheckpointError: they differ.
    """
    names = sorted(name for name in tensors if _matches(name, [pattern]))
    values = [tensors.pop(name) for name in names]
    if any(not torch.equal(values[0], value) for value in values[1:]):
        raise CheckpointError(f"{where}: {_some(names)} should be copies of one tensor, but differ")
    return values[0] if values else None


def shape_of(tensors: Mapping[str, Tensor], name: str, n_axes: int, where: Path) -> tuple[int, ...]:
    """Return the shape of a tensor from which a size is read.

    Raises:
        CheckpointError: it is absent or has another number of axes.
    """
    if name not in tensors:
        raise CheckpointError(f"{where}: no tensor {name!r}; is this a checkpoint of another family?")
    if tensors[name].ndim != n_axes:
        raise CheckpointError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, expected {n_axes} axes")
    return tuple(tensors[name].shape)


def count_layers(tensors: Iterable[str], pattern: str) -> int:
    """Return one more than the largest number that ``pattern`` finds at the start of the names, 0 if none."""
    found = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _some(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---------------------------------------------------------------------------------------------------------- writing


def write_folder(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor], weights: str) -> None:
    """Write ``config.json`` and one file of weights, in the format that the suffix of its name says."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(config, folder / "config.json")
    write = write_safetensors if weights.endswith(".safetensors") else write_pickle
    write(tensors, folder / weights)


def values_of(config: object, names: Iterable[str]) -> dict[str, object]:
    """Return attributes of a library's config by their names, the counterpart of ``settings``."""
    return {name: getattr(config, name) for name in names}


def write_json(value: Mapping[str, object], path: Path) -> None:
    """Write a JSON object, sorted and indented as the hub does, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all; equal tensors give equal bytes."""
    with replacing(path) as temporary:
        save_file(_plain(tensors), temporary, metadata={"format": "pt"})


def write_pickle(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a flat state dict with ``torch.save``, whole or not at all; equal tensors give equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(_plain(tensors), file)  # to an open file: the archive must not carry the temporary name


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
