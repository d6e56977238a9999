"""Which families there are, and the doors through which every model comes in: ``load``, ``build``, ``save``.

A family is one line here and one class; nothing of torch or transformers is imported before a model is asked for.
Beside the methods of ``Adapter`` a class has ``load(folder, *, dtype, layout)``, ``build(*, seed, **sizes)`` and
``files(folder, layout)``, the files that ``load`` reads.
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from plm_depth.models.base import Adapter


# Files of a repository that a family reads, in patterns of names ("*" goes across folders): of the layout of the hub's
# libraries, and of fair-esm's.
HUB = (
    *("config.json", "vocab.*", "merges.txt", "tokenizer*.json", "special_tokens_map.json"),
    *("model*.safetensors*", "pytorch_model*.bin*"),
)
FAIR_ESM = ("*.pt",)


class Entry(NamedTuple):
    """Where the class of a family stands, and what a config is checked and priced by without loading torch.

    ``reads_structure``: the parts of ``base.Structure`` any of which is enough to show it a structure; () if none is.
    ``can_branch``, ``tokens_are_residues``: as the class has them.
    ``structure_classes``: how many classes its structure head tells apart; 0 without one.
    ``as_x``, ``refused``: of the letters beside the 20 amino acids (``letters.ODD``), those that it reads as an unknown
    residue and those that it does not read; each other one has a token of its own.
    ``files``: by layout, what to fetch of a repository, in the order of preference; () for one that is an archive.
    """

    where: str
    objective: str
    name: str  # as people write it, over panels of figures
    reads_structure: tuple[str, ...] = ()
    can_branch: bool = False
    tokens_are_residues: bool = True
    as_x: str = ""
    refused: str = "J"
    structure_classes: int = 0
    files: Mapping[str, tuple[str, ...]] = MappingProxyType({"hub": HUB})


FAMILIES = {  # every value is an Entry
    "esm2": Entry("plm_depth.models.esm:Esm2", "mlm", "ESM-2", files={"hub": HUB, "fair_esm": FAIR_ESM}),
    "dplm": Entry("plm_depth.models.esm:Dplm", "diffusion", "DPLM"),
    "esm1b": Entry("plm_depth.models.esm:Esm1b", "mlm", "ESM-1b", files={"hub": HUB, "fair_esm": FAIR_ESM}),
    "esm1v": Entry("plm_depth.models.esm:Esm1v", "mlm", "ESM-1v", files={"hub": HUB, "fair_esm": FAIR_ESM}),
    "saprot": Entry(
        *("plm_depth.models.saprot:SaProt", "mlm", "SaProt", ("three_di",)),
        as_x="BOUZ",
        structure_classes=20,
        files={"hub": HUB, "fair_esm": FAIR_ESM},
    ),
    "dplm2": Entry("plm_depth.models.dplm2:Dplm2", "diffusion", "DPLM-2", ("codes",), structure_classes=8192),
    "esmc": Entry("plm_depth.models.esmc:EsmC", "mlm", "ESM C", files={"native": HUB, "pth": ("*.pth",)}),
    "esm3": Entry(
        *("plm_depth.models.esm3:Esm3", "mlm", "ESM3", ("codes", "coordinates")),
        structure_classes=4096,
        files={"pth": ("*esm3_sm_open_v1.pth", "*esm3_structure_encoder_v0.pth")},
    ),
    "protbert": Entry("plm_depth.models.protbert:ProtBert", "mlm", "ProtBERT", as_x="BOUZ"),
    "progen2": Entry(
        *("plm_depth.models.gptj:ProGen2", "ar", "ProGen2"),
        can_branch=True,
        files={"community": HUB, "authors": ()},
    ),
    "protgpt2": Entry("plm_depth.models.protgpt2:ProtGpt2", "ar", "ProtGPT2", tokens_are_residues=False, refused=""),
    "progen3": Entry("plm_depth.models.progen3:ProGen3", "ar", "ProGen3", refused=""),
}


def adapter_class(family: str) -> "type[Adapter]":
    """Return the class of a family.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    if family not in FAMILIES:
        near = difflib.get_close_matches(str(family), FAMILIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown family {family!r}; {hint}known: {', '.join(sorted(FAMILIES))}")
    module, name = FAMILIES[family].where.split(":")
    return getattr(importlib.import_module(module), name)


def load(
    family: str,
    folder: Path | str,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    layout: str | None = None,
    **options: object,
) -> "Adapter":
    """Return the adapter of a checkpoint, in evaluation mode, after its self-check.

    Args:
        family: a key of ``FAMILIES``.
        folder: the checkpoint in one of the layouts that the family publishes.
        dtype: of the matrices: float32, float64, bfloat16 or float16; see ``Adapter.dtype``.
        device: "cpu", "cuda", "cuda:0", ...
        layout: one of the family's ``layouts``; by default what the folder's files say.
        options: sizes that some layouts leave out (``n_heads``), for the families whose ``load`` takes them.
    Raises:
        ValueError: an unknown family or layout.
        CheckpointError: the checkpoint is not what the family publishes, or stepping does not give its logits.
    """
    kind = adapter_class(family)
    from plm_depth.models.base import CheckpointError

    try:
        adapter = kind.load(Path(folder), dtype=dtype, layout=layout, **options)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # a library that was given nonsense has error classes of its own
        if layout is not None and layout not in kind.layouts:
            raise
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: cannot be loaded as {family} ({type(error).__name__}: {said[:300]}); is its config.json that "
            "of this family and of these weights?"
        ) from error
    adapter.module.to(device)
    adapter.self_check()
    return adapter


def build(family: str, sizes: Mapping[str, object], seed: int = 0) -> "Adapter":
    """Return an untrained model of a family, in evaluation mode, its weights as its library draws them.

    Args:
        family: a key of ``FAMILIES``.
        sizes: keyword arguments of the family's ``build``: n_blocks, d_model, n_heads, ...
        seed: of the initialisation; equal seeds give equal weights.
    Raises:
        ValueError: an unknown family, an unknown or missing size, or sizes that do not fit.
    """
    maker = adapter_class(family).build
    known = [name for name in inspect.signature(maker).parameters if name != "seed"]
    for name in sizes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown size {name!r} of {family}; {hint}known: {', '.join(known)}")
    parameters = inspect.signature(maker).parameters
    if missing := [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in sizes]:
        raise ValueError(f"{family} needs {', '.join(missing)}; given: {', '.join(sizes) or 'nothing'}")
    return maker(**sizes, seed=seed)


def save(adapter: "Adapter", folder: Path | str) -> None:
    """Write a model into a folder in the layout that its family publishes, so that ``load`` reads the same model.

    Raises:
        ValueError: weights that are not float32, in which every family is published.
    """
    if adapter.dtype != "float32":
        raise ValueError(f"this model is {adapter.dtype}; load it in float32 to save it")
    adapter.save(Path(folder))
