"""What each job of a study costs before it runs: operations, disk, memory, bytes to fetch; nothing is loaded.

A price belongs to one output file of one job, so that what is already there can be told from what is still due. Every
expensive rule has a function in ``PRICES``; a section of the config that runs the model adds one:

    @priced("measure_effects")
    def effects(study): yield Price(...)

Operations are those of ``plm_depth.activations.cost``. Bytes of tables are measured bytes a row, stated beside them; a
protein is taken to have the mean of its data set's shortest and longest length.
"""

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plm_depth.activations.cost import Cost, Size, detour_cost, detours_of, forward_cost, sweep_cost, total
from plm_depth.config import ConfigError, Study, read_models
from plm_depth.models.branches import Branches
from plm_depth.models.pins import receipt_of
from plm_depth.models.registry import FAMILIES
from plm_depth.positions import PRIMARY_POSITIONS
from plm_depth.views import View, views_of

STORED_BYTES = 4  # of a parameter in a published checkpoint, at most
LOADING = 1.5  # memory while weights are read, over the weights: fused matrices are split by copying
DRAWN_BYTES = 4  # of a parameter of an untrained network as its library draws it
VOCABULARY = 33  # real tokens of a read-out; families have 26 to 34
MOMENT_NUMBERS = 15
STRUCTURE_NUMBERS = 10  # of a read-out of a structure head
LOGITS_AT_ONCE = 2**22  # of a structure head, as in plm_depth.activations.structure_heads
ASSUMED_BLOCKS = 24  # where only the number of parameters is known
NEAREST_PAIR = 6  # as in plm_depth.tables, which loads more than a dry run needs
HEAD_WIDTH = 64  # of the attention heads of published models; their number decides the size of attention maps
# Measured on the mini study's tables: bytes of one row as it lies on the disk.
KEY_BYTES = 6.0  # keys of a row of a vector table
METRIC_BYTES = 1300.0  # contributions and lens together, for one protein, view and layer
SOURCE_BYTES = 700.0  # output_change, and the keys of skip, for one protein, sweep and source
ABLATION_BYTES = 60.0  # ablations, for one protein, view and different run
GROUP_BYTES = 6000.0  # attribution or erasure of one protein, network and view: what its row group takes at least
ERASURE_BYTES = 12.0  # one row of an erasure
TARGET_BYTES = 55.0  # skip, for one protein, sweep, source and target
# Of the substitution assays of ProteinGym; what a config names itself is taken to be alike.
PUBLISHED_ASSAYS = 217
ASSAYED_RESIDUES = 400
ASSAYED_VARIANTS = 10_000


class Sizes(NamedTuple):
    """Sizes of a model, and whether they are known or follow from its number of parameters alone."""

    n_blocks: int
    d_model: int
    n_parameters: int
    are_known: bool = True


@dataclass(frozen=True)
class Price:
    """What one job costs.

    Attributes:
        rule: of the workflow.
        output: one file (or folder) of the job, relative to the working directory.
        model: "" where none runs.
        cost: of the model's passes; zero where no model runs.
        itemsize: bytes of a weight in the passes: tells which product rate applies.
        disk_bytes: of what the job leaves.
        fetched_bytes: from the network; 0 for a file of unknown size, too.
        url: what is fetched, "" if nothing.
        memory_bytes: of the process; beside an accelerator, unless ``compute.device`` is cpu.
        device_bytes: of the accelerator if it runs there.
    """

    rule: str
    output: str
    model: str = ""
    cost: Cost = Cost()  # noqa: RUF009 (frozen)
    itemsize: int = 4
    disk_bytes: float = 0.0
    fetched_bytes: float = 0.0
    url: str = ""
    memory_bytes: float = 0.0
    device_bytes: float = 0.0


Pricing = Callable[[Study], Iterator[Price]]
PRICES: dict[str, Pricing] = {}


def priced(*rules: str) -> Callable[[Pricing], Pricing]:
    """Return a decorator that registers a function as the price of rules: a ``Price`` for each of their jobs."""

    def register(function: Pricing) -> Pricing:
        for rule in rules:
            PRICES[rule] = function
        return function

    return register


def prices(study: Study) -> list[Price]:
    """Return the price of every expensive job of a study, in the order of the data."""
    return [price for function in dict.fromkeys(PRICES.values()) for price in function(study)]


def unknown_sizes(study: Study) -> list[str]:
    """Return the models about whose size nothing is known: they have no price."""
    return [name for name in study.models if sizes_of(study, name) is None]


# ----------------------------------------------------------------------------------------------------------------
# The models


def sizes_of(study: Study, name: str) -> Sizes | None:
    """Return the sizes of a model, from the first that tells them; None if nothing does.

    In this order: the card of this study, the recipe, the sheet of models (also for an entry of the config that names a
    repository or an archive of it), the ``config.json`` and weights of a folder.
    """
    entry = study.models[name]
    card = _json(study.root / "results" / study.config["study"] / "cards" / f"{name}.json")
    if recipe := entry.get("recipe"):
        d, n = recipe["d_model"], recipe["n_blocks"]
        return Sizes(n, d, 12 * n * d * d + 2 * VOCABULARY * d)
    # The sheet is read for entries of the config alone: its own rows state their sizes.
    if found := _stated(card) or _stated(entry) or _stated(_row_of(study, entry)):
        return found
    if "path" in entry:
        return _sizes_of_folder(study.root / entry["path"])
    return None


def _stated(row: Mapping[str, object]) -> Sizes | None:
    blocks, width, parameters = (row.get(key) for key in ("n_blocks", "d_model", "n_parameters"))
    if isinstance(blocks, int) and isinstance(width, int):
        return Sizes(blocks, width, parameters if isinstance(parameters, int) else 12 * blocks * width**2)
    if isinstance(parameters, int):
        return Sizes(ASSUMED_BLOCKS, round(math.sqrt(parameters / 12 / ASSUMED_BLOCKS)), parameters, False)
    return None


def _row_of(study: Study, entry: Mapping[str, object]) -> Mapping[str, object]:
    """Return the row of the sheet that names the same repository or archive, {} if none does."""
    try:
        rows = read_models(study.root / study.config["models_sheet"])
    except ConfigError:  # an entry of the config needs no sheet
        return {}
    same = (row for row in rows.values() for key in ("hub", "archive") if key in entry and row.get(key) == entry[key])
    return next(same, {})


def _sizes_of_folder(folder: Path) -> Sizes | None:
    config = _json(folder / "config.json")
    names = {
        "n_blocks": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        "d_model": ("hidden_size", "n_embd", "embed_dim", "d_model"),
    }
    row = {key: next((config[name] for name in of if name in config), None) for key, of in names.items()}
    weights = [p for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth") for p in folder.rglob(pattern)]
    stored = sum(path.stat().st_size for path in weights)
    return _stated({**row, "n_parameters": stored // STORED_BYTES or None})


def _json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def size_of(study: Study, name: str) -> Size:
    """Return a model as the cost formulas take it.

    All MLPs are taken to have the weights of a plain one of four widths: gated ones (ESM C, ESM3) have about as many;
    of a mixture of experts this counts the experts that work.
    """
    sizes, entry = sizes_of(study, name), study.models[name]
    is_causal = entry["objective"] == "ar"
    return Size(
        *(sizes.n_blocks, sizes.d_model, 4 * sizes.d_model, VOCABULARY),
        is_parallel=FAMILIES[entry["family"]].can_branch,
        is_causal=is_causal,
        itemsize=itemsize(entry),
    )


def itemsize(entry: Mapping[str, object]) -> int:
    """Return the bytes of a weight in the forward pass."""
    return 4 if entry["dtype"] == "float32" else 2


def process_bytes(study: Study, name: str, networks: Collection[str] = ()) -> float:
    """Return the memory that a job asks of the machine (what it does on an accelerator is ``device_bytes``).

    Loading takes up to half of the weights more than they have. While a null model stands in their place the weights
    are kept aside, and an untrained network is drawn as a whole and in float32 before it is cast; on a CPU the model
    itself lies beside both. Measured: docs/performance.md.

    Args:
        networks: kinds of the networks that the job measures.
    """
    n = sizes_of(study, name).n_parameters
    weights = itemsize(study.models[name]) * n
    drawn = DRAWN_BYTES * n if "randinit" in networks else 0
    is_altered = not {"randinit", "shuffle_w"}.isdisjoint(networks)
    here = weights if study.config["compute"]["device"] == "cpu" else 0
    altered = here + weights + drawn if is_altered else 0
    return study.config["compute"]["memory_gb"] * 1e9 + max(LOADING * weights, altered)


def device_bytes(study: Study, name: str) -> float:
    """Return the memory of an accelerator that a pass fills: weights, and a batch of the token budget.

    A block keeps about 12 widths a token at once, and the read-out its logits, all float32.
    """
    sizes, budget = sizes_of(study, name), study.config["compute"]["token_budget"]
    return itemsize(study.models[name]) * sizes.n_parameters + 4.0 * budget * (12 * sizes.d_model + 3 * VOCABULARY)


def length_of(study: Study, dataset: str) -> int:
    """Return the residues of a data set's average protein, halfway between the shortest and the longest allowed."""
    return (study.datasets[dataset]["min_length"] + study.datasets[dataset]["max_length"]) // 2


@dataclass(frozen=True)
class Tables:
    """How many rows the metrics of one model and data set read.

    Attributes:
        layers: blocks + 1.
        networks: of the largest variant.
        all_networks: of all variants.
        proteins, views: of the data set; views are counted under every condition.
        tokens, reads: of all proteins and views, of one network.
        shard_tokens, shard_reads: the same of the largest shard.
    """

    layers: int
    networks: int
    all_networks: int
    proteins: int
    views: int
    tokens: int
    reads: int
    shard_tokens: int
    shard_reads: int

    @property
    def groups(self) -> int:
        """Proteins x views."""
        return self.proteins * self.views


def tables_of(study: Study, dataset: str, name: str, variant: str | None = None) -> Tables:
    """Return the sizes of a model's activations and per-protein tables; nothing is read but the config.

    Args:
        variant: the one whose networks are counted; by default the largest.
    """
    entry, size, length = study.models[name], sizes_of(study, name), length_of(study, dataset)
    views = views_of(entry["objective"], study.config["inputs"]) * len(study.conditions_of(dataset, name))
    ranks = [study.ranks(dataset, shard) for shard in range(study.n_shards(dataset))]
    n, largest = max(last for _, last in ranks), max(last - first for first, last in ranks)
    reads = sum(n_read(view, length) for view in views)
    networks = {key: len(value) for key, value in variants(study).items()}
    return Tables(
        layers=(size.n_blocks if size else ASSUMED_BLOCKS) + 1,
        networks=networks[variant] if variant else max(networks.values()),
        all_networks=sum(networks.values()),
        proteins=n,
        views=len(views),
        tokens=n * len(views) * (length + 2),
        reads=n * reads,
        shard_tokens=largest * len(views) * (length + 2),
        shard_reads=largest * reads,
    )


def _priced(study: Study, names: Iterable[str] | None = None) -> list[str]:
    """Return those of some models (all by default) whose size is known, in the order of the study."""
    wanted = set(study.models if names is None else names)
    return [name for name in study.models if name in wanted and sizes_of(study, name) is not None]


def _priced_in_any(study: Study, section: str) -> list[str]:
    """Return the models of known size that a section is about and that some data set measures."""
    return _priced(study, {name for dataset in study.datasets for name in study.models_in(section, dataset)})


def _networks_in(study: Study, section: str) -> list[str]:
    """Return the kinds of the null models that a section measures, as often as they have seeds."""
    return [null["null_model"] for null in study.nulls_in(section)]


def _variants_in(study: Study, section: str) -> dict[str, list[str]]:
    """Return the networks of each variant that a section has jobs for."""
    nulls = _networks_in(study, section)
    return {"trained": ["trained"], **({"null": nulls} if nulls else {})}


def _results(study: Study) -> str:
    return f"results/{study.config['study']}"


# ----------------------------------------------------------------------------------------------------------------
# Downloads and training


@priced("download_source", "download_structure", "download_checkpoint")
def downloads(study: Study) -> Iterator[Price]:
    """Price what comes over the network; a source's size is known only to its server."""
    for source in study.used_sources.values():
        if "://" in source["url"]:
            output = f"resources/downloads/{Path(source['url']).name}"
            yield Price("download_source", output, url=source["url"])
    for path, url in sorted({entry.path: entry.url for entry in study.structures if entry.url}.items()):
        yield Price("download_structure", path, url=url, fetched_bytes=5e5, disk_bytes=5e5)
    for name, entry in study.models.items():
        if "hub" not in entry and "archive" not in entry:
            continue
        sizes = sizes_of(study, name)
        stored = STORED_BYTES * sizes.n_parameters if sizes else 0
        yield Price(
            "download_checkpoint",
            receipt_of(f"resources/checkpoints/{name}"),
            name,
            fetched_bytes=stored,
            disk_bytes=stored * (2 if "archive" in entry else 1),  # an archive lies beside what comes out of it
            url=entry.get("archive") or f"hub:{entry['hub']}",
        )


@priced("train_checkpoint")
def training(study: Study) -> Iterator[Price]:
    """Price the training of the study's own models: forward, and twice as much backward, for every token."""
    for name, entry in study.models.items():
        if recipe := entry.get("recipe"):
            n_tokens = recipe["steps"] * recipe["tokens_per_batch"]
            size = size_of(study, name)
            row = 128
            cost = forward_cost(size, row, n_reads=row) * (3 * n_tokens / row)
            yield Price(
                "train_checkpoint",
                f"{_results(study)}/checkpoints/{name}",
                name,
                cost,
                disk_bytes=4 * sizes_of(study, name).n_parameters,
                memory_bytes=study.config["compute"]["memory_gb"] * 1e9,
                device_bytes=16 * sizes_of(study, name).n_parameters,
            )


@priced("describe_checkpoint")
def cards(study: Study) -> Iterator[Price]:
    """Price the self-checks: a few tokens each, but the whole model in memory."""
    for name in _priced(study):
        yield Price(
            "describe_checkpoint",
            f"{_results(study)}/cards/{name}.json",
            name,
            forward_cost(size_of(study, name), 64) * 4,
            itemsize(study.models[name]),
            memory_bytes=process_bytes(study, name),
        )


# ----------------------------------------------------------------------------------------------------------------
# Passes


def variants(study: Study) -> dict[str, list[str]]:
    """Return the networks of each variant: the kinds of its null models, as often as they have seeds."""
    nulls = [null["null_model"] for null in study.config["nulls"]]
    return {"trained": ["trained"], **({"null": nulls} if nulls else {})}


def n_read(view: View, length: int) -> int:
    """Return how many residues of a protein a view reads out."""
    share = {"next": (length - 1) / length, "visible": 1.0, "masked": view.noise_t}[view.reads]
    return round(share * length)


@priced("extract_activations")
def activations(study: Study) -> Iterator[Price]:
    """Price the passes over every shard, for trained and null models, all views and conditions."""
    cache = study.config["cache"]
    for dataset in study.datasets:
        length = length_of(study, dataset)
        for name in _priced(study, study.models_of(dataset)):
            entry, size = study.models[name], size_of(study, name)
            views = views_of(entry["objective"], study.config["inputs"])
            n_conditions = len(study.conditions_of(dataset, name))
            layers = size.n_blocks + 1
            has_residues = FAMILIES[entry["family"]].tokens_are_residues
            per_protein, vectors, streams = Cost(), 0.0, 0
            for view in views:
                reads = n_read(view, length) if has_residues else 0
                per_protein += forward_cost(size, length + 2, n_reads=reads, n_layers_read=layers)
                vectors += (length + 2) * (layers * MOMENT_NUMBERS * 4 + KEY_BYTES)
                vectors += reads * (layers * VOCABULARY * 4 + KEY_BYTES)
                vectors += METRIC_BYTES * layers
                streams += view.reads != "masked"
            stream = (
                streams * (cache["anchors"] + 1) * layers * size.d_model * (2 if cache["dtype"] == "float16" else 4)
            )
            for variant, networks in variants(study).items():
                kept = sum(network in ("trained", "randinit") for network in networks)
                for shard in range(study.n_shards(dataset)):
                    first, last = study.ranks(dataset, shard)
                    n = (last - first) * n_conditions
                    yield Price(
                        "extract_activations",
                        f"{_results(study)}/activations/{dataset}/{name}/{variant}/{shard}/moments.parquet",
                        name,
                        per_protein * (n * len(networks)),
                        itemsize(entry),
                        disk_bytes=n * (vectors * len(networks) + stream * kept),
                        memory_bytes=process_bytes(study, name, networks),
                        device_bytes=device_bytes(study, name),
                    )


def sweeps_of(size: Size, view: View, skips: Mapping[str, object], length: int, token_budget: int) -> tuple[Cost, int]:
    """Return the cost of all sweeps of one protein in one view, and how many (part, set, draw, ablation) they are.

    Position sets as in ``activations.interventions``; prefix points stand evenly spaced for the drawn ones.
    """
    names, draws = list(skips["pos_sets"]), skips["draws"]
    sets = {name: draws if name in ("prefix", "other") else 1 for name in names}
    if view.reads != "masked":
        sets.pop("ctx2mask", None)
    parts = [part for part in skips["parts"] if part != "geom"]  # of one block, where there is one at all
    kinds = len(parts) * len(skips["ablations"])
    local = len(parts) if skips["local"] else 0
    primary = PRIMARY_POSITIONS["ar" if view.reads == "next" else "mlm"]
    supporting = len(skips.get("supporting", ())) if primary in sets else 0  # of whole blocks, one draw
    n_tokens = length + 2
    layouts: list[tuple[Branches | None, int]] = []
    shared = {name: n for name, n in sets.items() if name in ("all", "prefix")}
    branched: set[str] = set()
    if size.is_causal and size.is_parallel and sum(shared.values()) > 1:
        points = [max(1, round(n_tokens * (i + 1) / (draws + 1))) for i in range(shared.get("prefix", 0))]
        trunk = n_tokens if "all" in shared else max(points)
        layouts.append((Branches(n_tokens, trunk, tuple(points)), 1))
        branched = set(shared)
        sets = {name: n for name, n in sets.items() if name not in shared}
    if sets:
        layouts.append((None, sum(sets.values())))
    costs = [
        sweep_cost(
            size,
            n_tokens if branches is None else len(branches.source),
            propagating=n * kinds + (supporting if (branches is not None) == (primary in branched) else 0),
            local=n * local,
            attention=n * len(skips["ablations"]) if "attn" in skips["parts"] else 0,
            n_reads=n_tokens if branches is None else len(branches.source),
            token_budget=token_budget,
            branches=branches,
        )
        for branches, n in layouts
    ]
    n_sweeps = (sum(sets.values()) + (sum(shared.values()) if len(layouts) > bool(sets) else 0)) * (kinds + local)
    n_sweeps += supporting
    return total(costs), n_sweeps


@priced("measure_effects")
def effects(study: Study) -> Iterator[Price]:
    """Price the skip effects: the largest part of most studies."""
    section = study.config.get("effects")
    if section is None:
        return
    budget = study.config["compute"]["token_budget"]
    for dataset in study.datasets:
        length, n_proteins = length_of(study, dataset), study.effects_size(dataset)
        for name in _priced(study, study.models_of(dataset)):
            entry, size = study.models[name], size_of(study, name)
            n_conditions = len(study.conditions_of(dataset, name))
            views = views_of(entry["objective"], study.inputs_in("effects", entry["objective"]))
            swept = [sweeps_of(size, view, section["skips"], length, budget) for view in views]
            cost, n_sweeps = total([c for c, _ in swept]), sum(n for _, n in swept)
            per_source = SOURCE_BYTES + TARGET_BYTES * size.n_blocks
            for variant, networks in _variants_in(study, "effects").items():
                for shard in range(-(-n_proteins // section["shard_size"])):
                    first, last = study.ranks_in("effects", dataset, shard)
                    n = (last - first) * n_conditions * len(networks)
                    yield Price(
                        "measure_effects",
                        f"{_results(study)}/effects/{dataset}/{name}/{variant}/{shard}/skip.parquet",
                        name,
                        cost * n,
                        itemsize(entry),
                        disk_bytes=n * n_sweeps * size.n_blocks * per_source,
                        memory_bytes=process_bytes(study, name, networks),
                        device_bytes=device_bytes(study, name),
                    )


@priced("embed_user_proteins", "cut_checkpoint")
def choices(study: Study) -> Iterator[Price]:
    """Price the passes over users' tables, and the truncated checkpoints (two models in memory, a third written)."""
    for question, choice in study.choices.items():
        folder = f"{_results(study)}/choices/{question}"
        n_proteins, length = _size_of_table(study.root / choice["table"], choice["max_length"])
        of_residues = choice["kind"] in ("auto", "residue-regression", "residue-classification")
        for name in _priced(study, choice.get("models")):
            if choice["kind"].startswith("residue-") and not FAMILIES[study.models[name]["family"]].tokens_are_residues:
                continue
            entry, size, parameters = study.models[name], size_of(study, name), sizes_of(study, name).n_parameters
            directions = 2 if entry["objective"] == "ar" else 1
            rows = directions * (1 + (choice["residues"] if of_residues else 0))
            each = 2 if study.config["cache"]["dtype"] == "float16" else 4
            yield Price(
                "embed_user_proteins",
                f"{folder}/streams/{name}.parquet",
                name,
                forward_cost(size, length + 2) * (n_proteins * directions),
                itemsize(entry),
                disk_bytes=n_proteins * rows * ((size.n_blocks + 1) * size.d_model * each + KEY_BYTES),
                memory_bytes=process_bytes(study, name),
                device_bytes=device_bytes(study, name),
            )
            if choice["truncate"] != "none":
                yield Price(
                    "cut_checkpoint",
                    f"{folder}/truncated/{name}",
                    name,
                    disk_bytes=STORED_BYTES * parameters,
                    memory_bytes=study.config["compute"]["memory_gb"] * 1e9 + 3 * STORED_BYTES * parameters,
                )


def _size_of_table(path: Path, max_length: int) -> tuple[int, int]:
    """Return about how many proteins a user's table has, and how long they are: its lines, and their mean length."""
    try:
        with path.open("rb") as file:
            lines = max(1, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")))
    except OSError:
        return 0, max_length
    return lines, min(max_length, path.stat().st_size // lines)


@priced("ablate_depth")
def ablations(study: Study) -> Iterator[Price]:
    """Price the depth ablations: every changed run of every protein, and the passes that choose spans."""
    section = study.config.get("ablation")
    if section is None:
        return
    budget = study.config["compute"]["token_budget"]
    for dataset in study.datasets:
        length = length_of(study, dataset)
        for name in _priced(study, study.models_in("ablation", dataset)):
            entry, size = study.models[name], size_of(study, name)
            objective = entry["objective"]
            views = views_of(objective, study.inputs_in("ablation", objective))
            n_conditions = len(study.conditions_of(dataset, name))
            n_runs, n_passed = detours_of(size.n_blocks, section)
            runs = {"n_runs": n_runs, "n_passed": n_passed, "token_budget": budget}
            reads = [n_read(view, length) for view in views]
            per_protein = total([detour_cost(size, length + 2, n_reads=n, **runs) for n in reads])
            choosing = forward_cost(size, length + 2) * (2 * section["selection"] * len(views) * n_conditions)
            # Of residues masked one at a time only these are run.
            alone = [op for op in section["ops"] if op in ("exit", "remove")]
            n_single, n_single_passed = detours_of(size.n_blocks, section, alone)
            single = detour_cost(
                size, length + 2, n_runs=n_single, n_passed=n_single_passed, n_reads=1, token_budget=budget
            ) * (length if objective == "mlm" else 0)
            n_proteins = study.size_in("ablation", dataset)
            for variant, networks in _variants_in(study, "ablation").items():
                n_shards = -(-n_proteins // section["shard_size"])
                for shard in range(n_shards):
                    first, last = study.ranks_in("ablation", dataset, shard)
                    n = last - first
                    n_single = max(
                        0, min(last, section["pseudo_perplexity"]) - first
                    )  # the lowest ranks, sequence alone
                    cost = per_protein * (n * n_conditions) + choosing + single * n_single
                    yield Price(
                        "ablate_depth",
                        f"{_results(study)}/ablate/{dataset}/{name}/{variant}/{shard}.parquet",
                        name,
                        cost * len(networks),
                        itemsize(entry),
                        disk_bytes=n * len(networks) * n_conditions * len(views) * n_runs * ABLATION_BYTES,
                        memory_bytes=process_bytes(study, name, networks),
                        device_bytes=device_bytes(study, name),
                    )


@priced("score_variants")
def fitness(study: Study) -> Iterator[Price]:
    """Price the scores of variants; how many there are is known only when the assays have been read: it is assumed."""
    section = study.config.get("fitness")
    if section is None:
        return
    n_assays = sum(
        len(assay.get("ids", range(PUBLISHED_ASSAYS))) if assay["format"] == "proteingym" else 1
        for assay in section["assays"]
    )
    length, n = min(ASSAYED_RESIDUES, section["window"]), min(section["max_variants"], ASSAYED_VARIANTS)
    n_embedded, scorers = min(section["embed_variants"], n), set(section["scorers"])
    networks = ["trained", *_networks_in(study, "fitness")]
    for name in _priced_in_any(study, "fitness"):
        entry, size = study.models[name], size_of(study, name)
        n_conditions = len(section["conditions"]) if study.can_be_shown(entry["family"]) else 1
        layers, embeds = size.n_blocks + 1, bool(scorers & {"emb_zs", "emb_ridge"})
        embedded = n_embedded if embeds else 0
        if entry["objective"] == "ar":
            likely = bool(scorers & {"ar", "ar_parity"})
            # Both directions; from the first substitution on, half of the residues on average are read out.
            cost = forward_cost(size, length + 2, n_reads=length // 2 if likely else 0, n_layers_read=layers)
            cost *= 2 * (n if likely else embedded)
            rows = 2 * (len(scorers & {"ar", "ar_parity"}) * n + ("emb_zs" in scorers) * embedded)
        else:
            masked = min(n, length) if "mask" in scorers else 0  # one pass a position, where substitutions are single
            cost = forward_cost(size, length + 2, n_reads=1, n_layers_read=layers) * (masked + embedded)
            rows = len(scorers & {"wt", "mask"}) * n + ("emb_zs" in scorers) * embedded
        gram = layers * embedded * (embedded + 1) / 2 if "emb_ridge" in scorers else 0
        per_assay = 4.0 * (rows * layers + gram)
        for shard in range(section["shards"]):
            share = n_assays / section["shards"] * len(networks) * n_conditions
            yield Price(
                "score_variants",
                f"{_results(study)}/fitness/scores/{name}/{shard}/scores.parquet",
                name,
                cost * share,
                itemsize(entry),
                disk_bytes=per_assay * share,
                memory_bytes=process_bytes(study, name, networks),
                device_bytes=device_bytes(study, name),
            )


@priced("measure_attribution")
def attribution(study: Study) -> Iterator[Price]:
    """Price integrated gradients and erasures.

    A step is a forward pass, a second one on the way back, and a backward pass for each target: to states alone, which
    takes about as many operations as a forward pass.
    """
    section = study.config.get("attribution")
    if section is None:
        return
    budget = study.config["compute"]["token_budget"]
    methods, n_targets = section["methods"], len(section["targets"])
    networks = ["trained", *_networks_in(study, "attribution")]
    for dataset in study.datasets:
        length = length_of(study, dataset)
        for name in _priced(study, study.models_in("attribution", dataset)):
            entry, size = study.models[name], size_of(study, name)
            cost, bytes_ = Cost(), 0.0
            views = views_of(entry["objective"], study.inputs_in("attribution", entry["objective"]))
            for view in views if FAMILIES[entry["family"]].tokens_are_residues else ():
                one = forward_cost(size, length + 2, n_reads=n_read(view, length))
                n_objects = sum({"gate": 1, "gate_part": 2, "erasure": 0}.get(method, 1) for method in methods)
                gated = sum(method in ("gate", "gate_part") for method in methods)
                states = sum(method in ("layer", "attn", "mlp") for method in methods)
                n_passes = section["steps"] * (2 + n_targets) * (gated + states * size.n_blocks / 2)
                bytes_ += n_objects * (GROUP_BYTES + n_targets * size.n_blocks * 4 * length)
                if "erasure" in methods:
                    n_erasures = (section["positions"] + 1) * (size.n_blocks + 1)
                    n_passes += n_erasures / 2
                    bytes_ += GROUP_BYTES + 2 * n_erasures * ERASURE_BYTES
                cost += one * (n_passes + 1)
            for shard in range(-(-study.size_in("attribution", dataset) // section["shard_size"])):
                first, last = study.ranks_in("attribution", dataset, shard)
                yield Price(
                    "measure_attribution",
                    f"{_results(study)}/attributed/{dataset}/{name}/{shard}/attribution.parquet",
                    name,
                    cost * ((last - first) * len(networks)),
                    itemsize(entry),
                    disk_bytes=(last - first) * len(networks) * bytes_,
                    memory_bytes=process_bytes(study, name, networks),
                    # The states between all blocks are kept for the way back.
                    device_bytes=device_bytes(study, name) + 4.0 * size.n_blocks * size.d_model * budget,
                )


@priced("embed_annotated")
def probes(study: Study) -> Iterator[Price]:
    """Price the states of annotated proteins; of families as many members are assumed as chains are taken."""
    section = study.config.get("probes")
    if section is None:
        return
    length = (section["min_length"] + section["max_length"]) / 2
    n_chains = section["chains"] if set(section["tasks"]) - {"homology"} else 0
    n_members = section["chains"] if "homology" in section["tasks"] else 0
    n_attended = min(section["attention_chains"], n_chains) if "contacts" in section["tasks"] else 0
    n_pairs = max(0.0, length - NEAREST_PAIR) * (length - NEAREST_PAIR + 1) / 2
    untrained = section["untrained"] if "untrained" in section["controls"] else 0
    networks = ["trained", *["randinit"] * untrained]
    for name in _priced_in_any(study, "probes"):
        entry, size = study.models[name], size_of(study, name)
        views = 2 if entry["objective"] == "ar" else 1 + len(section["noise"])
        n_passes = (n_chains + n_members + n_attended) * views * len(networks)
        cost = forward_cost(size, round(length) + 2) * n_passes
        layers = size.n_blocks // section["every"] + 1
        rows = n_chains * (length + 1) + n_members
        maps = n_attended * n_pairs * (layers - 1) * math.ceil(size.d_model / HEAD_WIDTH) * 4
        yield Price(
            "embed_annotated",
            f"{_results(study)}/probes/stream/{name}.parquet",
            name,
            cost,
            itemsize(entry),
            disk_bytes=views * len(networks) * (rows * (layers * size.d_model * 2 + KEY_BYTES) + maps),
            memory_bytes=process_bytes(study, name, networks),
            device_bytes=device_bytes(study, name),
        )


@priced("fit_tuned_lens")
def tuned_lens(study: Study) -> Iterator[Price]:
    """Price translators: a pass a protein and step, the head of every layer there and back, and the evaluation."""
    section = study.config.get("tuned_lens")
    if section is None:
        return
    networks = ["trained", *_networks_in(study, "tuned_lens")]
    n_networks = len(networks)
    for dataset in study.datasets:
        length, n_read_out = length_of(study, dataset), study.size_in("tuned_lens", dataset)
        for name in _priced(study, study.models_in("tuned_lens", dataset)):
            entry, size = study.models[name], size_of(study, name)
            views = views_of(entry["objective"], study.inputs_in("tuned_lens", entry["objective"]))
            cost, bytes_ = Cost(), 0.0
            for view in views if FAMILIES[entry["family"]].tokens_are_residues else ():
                reads, layers = n_read(view, length), size.n_blocks + 1
                # The head and the translator there and back: three times as much as there alone.
                n_fitted = section["steps"] * section["batch"] / len(views)
                cost += forward_cost(size, length + 2, n_reads=reads, n_layers_read=3 * layers) * n_fitted
                cost += Cost(flops=6.0 * n_fitted * reads * size.n_blocks * size.d_model**2)
                cost += forward_cost(size, length + 2, n_reads=reads, n_layers_read=2 * layers) * n_read_out
                bytes_ += 2 * n_read_out * reads * (layers * VOCABULARY * 4 + KEY_BYTES)
            weights = 4 * size.n_blocks * size.d_model * (size.d_model + 1)
            yield Price(
                "fit_tuned_lens",
                f"{_results(study)}/tuned/{dataset}/{name}/tuned.parquet",
                name,
                cost * n_networks,
                itemsize(entry),
                disk_bytes=n_networks * (bytes_ + weights),
                memory_bytes=process_bytes(study, name, networks) + (n_networks + 4) * weights,
                # Weights, gradients and both moments of Adam; the states of all layers at the read positions.
                device_bytes=device_bytes(study, name)
                + 4 * weights
                + 4.0 * section["batch"] * length * size.n_blocks * size.d_model,
            )


@priced("read_structure_head")
def structure_heads(study: Study) -> Iterator[Price]:
    """Price the passes under every condition and view, and a head of many classes at every layer."""
    section = study.config.get("structure_heads")
    if section is None:
        return
    networks = ["trained", *_networks_in(study, "structure_heads")]
    for dataset in study.datasets:
        length = length_of(study, dataset)
        for name in _priced(study, study.models_in("structure_heads", dataset)):
            entry, size = study.models[name], size_of(study, name)
            views = views_of(entry["objective"], study.inputs_in("structure_heads", entry["objective"]))
            n_classes, layers = study.structure_classes_of(name), size.n_blocks + 1
            cost, bytes_ = Cost(), 0.0
            for condition, view in itertools.product(study.conditions_of(dataset, name), views):
                reads = n_read(view, length)
                if condition == "struct" and view.reads == "visible":  # nothing is visible
                    continue
                # As the head of the residues, but for its last matrix.
                cost += forward_cost(size, length + 2, n_reads=reads, n_layers_read=layers)
                cost += Cost(flops=2.0 * reads * layers * size.d_model * n_classes)
                bytes_ += reads * (layers * STRUCTURE_NUMBERS * 4 + KEY_BYTES)
            for shard in range(-(-study.size_in("structure_heads", dataset) // section["shard_size"])):
                first, last = study.ranks_in("structure_heads", dataset, shard)
                n = (last - first) * len(networks)
                yield Price(
                    "read_structure_head",
                    f"{_results(study)}/structure_read_outs/{dataset}/{name}/{shard}.parquet",
                    name,
                    cost * n,
                    itemsize(entry),
                    disk_bytes=n * bytes_,
                    memory_bytes=process_bytes(study, name, networks),
                    # The states of all layers at the read positions, and a few arrays of logits in float64.
                    device_bytes=device_bytes(study, name)
                    + 4.0 * layers * size.d_model * study.config["compute"]["token_budget"]
                    + 12 * 8 * LOGITS_AT_ONCE,
                )
