"""A study's config: checked as a whole before any job, every problem named with key, value and what is allowed."""

import csv
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, TypeChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from plm_depth.conditions import BACKBONE_TELLS, CONDITIONS
from plm_depth.positions import PRIMARY_POSITIONS
from plm_depth.sequences import ASSAY_FILES, ASSAY_FORMATS, SourceError
from plm_depth.sequences.accessions import Entry, entries_of
from plm_depth.sizing import WINDOW, shard_size_of

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # as the wildcard filename of the workflow
FROM_STRUCTURES = "structures"  # as the source of a data set: the sequences of the section of that name
SCHEMAS = Path(__file__).parent.parent / "schemas"

DEFAULTS: dict[str, object] = {
    "clusters": {"identity": 0.3, "coverage": 0.5, "tool": "auto"},
    "models_sheet": "config/models.tsv",
    "accepted_licences": [],
    "cache": {"anchors": 8, "dtype": "float16"},
    "bootstrap": {"resamples": 2000},
    "summary": {"kl_fraction": [0.5, 0.1], "overlap": 0.3},
    "verdicts": {},
    "compute": {
        "device": "auto",
        "token_budget": 16384,
        "batch_window": WINDOW,
        "threads": 1,
        "memory_gb": 4,
        "tflops": None,
        "preflight": "block",
    },
}
INPUT_DEFAULTS: dict[str, object] = {
    "conditions": ["seq"],
    "ar": {"directions": ["n2c", "c2n"]},
    "mlm": {"noise": [0.15], "draws": 2, "clean": True},
    "diffusion": {"noise": [0.1, 0.3, 0.5, 0.7, 0.9], "draws": 1, "clean": True},
}
NULL_DEFAULTS = [
    *({"null_model": "randinit", "seed": seed} for seed in range(3)),
    {"null_model": "shuffle_w", "seed": 0},
    {"null_model": "shuffle_seq", "seed": 0},
]
EFFECT_DEFAULTS: dict[str, object] = {
    "size": 128,
    "shard_size": 64,
    "null_models": ["randinit"],
    "inputs": {"ar": {"directions": ["n2c"]}, "mlm": {"clean": False}, "diffusion": {"clean": False}},
    "skips": {
        "parts": ["layer", "attn", "mlp", "geom"],
        "pos_sets": ["all", "prefix", "other", "ctx2mask"],
        "local": True,
        "draws": 4,
        "ablations": ["zero"],
        "supporting": ["mean"],
    },
}
# The same where conventions of the published study of language models are asked for (effects.skips.parity).
PARITY_DEFAULTS: dict[str, object] = {
    "parts": ["layer", "attn", "mlp"],
    "pos_sets": ["all", "prefix"],
    "supporting": [],
}
# Figures of skip effects: all read them at the positions that claims rest on; whether also at all positions.
EFFECT_FIGURES = {"block_influence": False, "output_change": True, "skip_matrices": False}
GEOMETRY_DEFAULTS: dict[str, object] = {
    "points": ["residue", "pooled"],
    "spaces": ["raw", "zscore"],
    "max_points": 4096,
    "spectrum_points": 2048,
    "k": 10,
    "groups": 20,
}
CHOICE_DEFAULTS: dict[str, object] = {
    "sequence": "sequence",
    "kind": "auto",
    "max_length": 1022,
    "too_long": "leave_out",
    "unknown": "-",
    "residues": 64,
    "norm": "final",
    "direction": "n2c",
    "probes": ["linear", "knn"],
    "neighbours": 10,
    "folds": 5,
    "tolerance": 0.02,
    "capacity": 256,
    "truncate": "none",
    "keep": "read_out",
}
ABLATION_DEFAULTS: dict[str, object] = {
    "size": 128,
    "shard_size": 64,
    "null_models": ["randinit"],
    "inputs": EFFECT_DEFAULTS["inputs"],
    "ops": ["exit", "remove", "remove_block", "swap_adj", "swap_block", "reverse"],
    "policies": ["angular", "deepest", "tail", "random", "exhaustive"],
    "lengths": [],
    "spans": [2, 3, 4],
    "exhaustive_up_to": 12,
    "draws": 4,
    "selection": 32,
    "pseudo_perplexity": 0,
    "retained": [0.9, 0.95, 0.99],
}
FITNESS_DEFAULTS: dict[str, object] = {
    "max_variants": 2000,
    "embed_variants": 256,
    "window": 1022,
    "shards": 1,
    "scorers": ["wt", "mask", "ar", "emb_zs"],
    "folds": ["random", "modulo", "contiguous"],
    "null_models": ["randinit"],
    "conditions": ["seq"],
    "resamples": 500,
}
ATTRIBUTION_DEFAULTS: dict[str, object] = {
    "size": 48,
    "shard_size": 16,
    "null_models": ["randinit"],
    "inputs": {"ar": {"directions": ["n2c"]}, "mlm": {"clean": False}, "diffusion": {"clean": False}},
    "methods": ["gate", "erasure"],
    "targets": ["logp", "prob"],
    "vocab": "aa20",
    "steps": 64,
    "rule": "midpoint",
    "power": 4,
    "specials": False,
    "positions": 16,
    "reference": 32,
}
PROBE_DEFAULTS: dict[str, object] = {
    "chains": 200,
    "min_length": 30,
    "max_length": 512,
    "every": 1,
    "noise": [],
    "untrained": 1,
    "folds": 5,
    "residues": 64,
    "contact_chains": 100,
    "attention_chains": 40,
    "pairs": 400,
    "capacity": 256,
    "spaces": ["pca"],
    "penalties": [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
    "controls": ["perm", "kmer", "untrained", "onehot"],
    "directions": ["n2c", "c2n", "both"],
    "tolerance": 0.02,
    "retention": [0.9, 0.95, 0.99],
    "resamples": 1000,
}
PROBES_OF_STRUCTURES = ("ss3", "rsa", "exposed", "hse", "contacts")
SHARD_TOKENS = 65536  # of a data set that says neither how many proteins nor how many residues make a shard
TUNED_LENS_DEFAULTS: dict[str, object] = {
    "train": 256,
    "size": 128,
    "held_out": 0.5,
    "steps": 250,
    "batch": 8,
    "learning_rate": 0.02,
    "null_models": ["randinit"],
    "null_seeds": 1,
    "inputs": {"ar": {"directions": ["n2c"]}, "mlm": {"clean": False}, "diffusion": {"clean": False}},
}
STRUCTURE_HEAD_DEFAULTS: dict[str, object] = {
    "size": 128,
    "shard_size": 64,
    "null_models": ["randinit"],
    "null_seeds": 1,
    "inputs": {},
}
DATASET_DEFAULTS = {"part": "all", "reserve": 16384, "min_length": 50, "max_length": 512}
TRAINING_DEFAULTS = {"min_length": 30, "max_length": 400, "held_out": 0.3, "structures": False}


class ConfigError(ValueError):
    """Everything that is wrong with a config, one line a problem."""

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        n = len(self.lines)
        super().__init__(
            f"the config has {n} problem{'s' if n > 1 else ''} (config/README.md explains every key):\n"
            + "\n".join(f"  - {line}" for line in self.lines)
        )


# ----------------------------------------------------------------------------------------------------------------
# Schema


def _is_number(checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern(validator: object, pattern: str, value: object, schema: object) -> Iterable[ValidationError]:
    # Python's $ matches before a line end at the end, too: such a name would go into paths.
    if isinstance(value, str) and not (value.isprintable() and re.search(pattern, value)):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


# NaN and infinities are no numbers here, 4.0 is no whole number, and a text of a pattern has one line.
_Validator = extend(
    Draft202012Validator,
    {"pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_whole}),
)


def problems(instance: object, schema: Mapping[str, object]) -> list[str]:
    """Return one line per violation of a JSON schema: the key's path, the value, what is allowed."""
    validator = _Validator(schema)
    lines = []
    for error in sorted(validator.iter_errors(instance), key=lambda e: [str(part) for part in e.absolute_path]):
        lines += _lines(error)
    return list(dict.fromkeys(lines))


def _lines(error: ValidationError) -> list[str]:
    where = _where(error)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        lines = []
        for key in sorted(set(error.instance) - set(known), key=str):
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            lines.append(f"{_join(where, key)}: unknown key; {hint}")
        return lines
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [f"{_join(where, key)}: missing; it is required" for key in missing]
    if error.validator == "anyOf":
        # A string names a row of a sheet, a mapping spells one out: judge by what was written.
        wanted = "object" if isinstance(error.instance, dict) else "string"
        inner = [e for e in error.context if not (e.validator == "type" and not e.relative_path)]
        matching = [e for e in inner if isinstance(e.instance, dict) or e.relative_path or wanted == "string"]
        return [line for e in (matching or inner) for line in _lines(e)] or [
            f"{where}: {error.instance!r}; expected a name or a mapping"
        ]
    if error.validator == "oneOf":
        options = [", ".join(option["required"]) for option in error.validator_value if "required" in option]
        present = [option for option in options if option in error.instance]
        return [f"{where}: give exactly one of {', '.join(options)}; found {', '.join(present) or 'none'}"]
    if error.validator == "enum":
        close = difflib.get_close_matches(str(error.instance), [str(v) for v in error.validator_value], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return [f"{where}: {error.instance!r} is not allowed; choose from {_list(error.validator_value)}{hint}"]
    if error.validator == "type":
        kinds = {
            "array": "a list",
            "object": "a mapping",
            "string": "a text",
            "integer": "a whole number",
            "boolean": "yes or no",
            "number": "a finite number",
        }
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        words = " or ".join(kinds.get(kind, f"a {kind}") for kind in wanted)
        hint = "" if where != "config" else "; expected lines of the form key: value"
        if isinstance(error.instance, str) and {"number", "integer"} & set(wanted):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4"
        return [f"{where}: {error.instance!r} is not {words}{hint}"]
    if error.validator == "pattern":
        what = error.schema.get("description", f"text matching {error.validator_value}")
        return [f"{where}: {error.instance!r} does not fit; expected {what}"]
    if error.validator == "dependentRequired":
        return [
            f"{_join(where, key)}: says something about {needed}, and there is none"
            for key, all_needed in error.validator_value.items()
            for needed in all_needed
            if key in error.instance and needed not in error.instance
        ]
    limits = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
        "minItems": "a list of at least",
        "minLength": "a text of at least",
    }
    if error.validator in limits:
        return [f"{where}: {error.instance!r}; expected {limits[error.validator]} {error.validator_value}"]
    if error.validator == "uniqueItems":
        return [f"{where}: {error.instance!r} names something twice"]
    return [f"{where}: {error.message}"]


def _where(error: ValidationError) -> str:
    text = ""
    for part in error.absolute_path:
        text = f"{text}[{part}]" if isinstance(part, int) else _join(text, part)
    return text or "config"


def _join(where: str, key: object) -> str:
    return str(key) if where in ("", "config") else f"{where}.{key}"


def _uncut(where: str, shard_size: int, size: int, window: int) -> list[str]:
    """Return a complaint about shards that cut windows of proteins that share batches."""
    if shard_size >= size or shard_size % window == 0:
        return []
    near = sorted({max(1, shard_size // window) * window, -(-shard_size // window) * window})
    return [
        f"{where}.shard_size: {shard_size} of {size} proteins; expected a multiple of compute.batch_window ({window}), "
        f"or the whole: what shares a batch decides the last bits, which no shard may change. {_list(near)} would do"
    ]


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def load_schema(name: str) -> dict[str, object]:
    """Return a schema of workflow/schemas by name ("config", "models")."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------------
# The sheet of models


def read_models(path: str | Path) -> dict[str, dict[str, object]]:
    """Return the rows of config/models.tsv by model id, typed and checked against workflow/schemas/models.schema.yaml.

    Empty cells are left out of a row.

    Raises:
        ConfigError: no such file, a bad header or cell (file, line, column, what is allowed), a model named twice.
    """
    path = Path(path)
    schema = load_schema("models")
    columns = schema["properties"]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
            rows = list(reader)
            header = reader.fieldnames or []
    except FileNotFoundError:
        raise ConfigError(
            [f"models_sheet: {path} does not exist; give the path of a sheet such as config/models.tsv"]
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text ({error}); save it as such"]) from None
    lines = [f"{path}: no column {name!r}; add it" for name in schema["required"] if name not in header]
    for name in header:
        if name not in columns:
            close = difflib.get_close_matches(name, list(columns), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {_list(columns)}"
            lines.append(f"{path}: unknown column {name!r}; {hint}")
    if lines:
        raise ConfigError(lines)
    models: dict[str, dict[str, object]] = {}
    for number, cells in enumerate(rows, start=1):
        row: dict[str, object] = {}
        if None in cells or None in cells.values():
            lines.append(f"{path}: row {number} has not {len(header)} cells, as the header has: correct its tabs")
            continue
        for name, text in cells.items():
            text = text.strip()
            if text:
                row[name] = _typed(text, columns[name].get("type", "string"))
        name = str(row.get("model", f"row {number}"))
        lines += [f"{path}, model {name}: {line}" for line in problems(row, schema)]
        if _must_be_accepted(row) and "licence" not in row:
            lines.append(f"{path}, model {name}: must be accepted first, but the column licence is empty: fill it")
        if name in models:
            lines.append(f"{path}: model {name} stands twice; remove one of its rows")
        models[name] = row
    if lines:
        raise ConfigError(lines)
    return models


def _must_be_accepted(row: Mapping[str, object]) -> bool:
    return bool(row.get("gated") or row.get("needs_acceptance"))


def _typed(text: str, kind: str) -> object:
    if kind == "boolean" and text in ("yes", "no"):
        return text == "yes"
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
    except ValueError:
        pass  # the schema then says what was expected
    return text


# ----------------------------------------------------------------------------------------------------------------
# The study


class Study:
    """A checked config with its defaults filled in and its models resolved.

    Attributes:
        config: the config with defaults.
        models: model id -> {model, display_name, family, objective, dtype, and one of path, hub, archive, recipe}, in
            order.
        datasets, sources: by name.
        choices: questions which layer serves a table of labels, by name, with their defaults.
        structures: the structures whose backbones are tabulated, none without a section of that name.
        left_out: what of ``inputs.conditions`` is not measured, and why, a line each.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        families: Mapping[str, str],
        figures: Iterable[str],
        root: str | Path = ".",
        *,
        reads_structure: Mapping[str, Iterable[str]] | None = None,
        structure_classes: Mapping[str, int] | None = None,
    ):
        """Check the whole config.

        Args:
            config: as Snakemake merged it.
            families: family name -> objective, the families that have an adapter.
            figures: names of the figures there are.
            root: folder that relative paths of the config are relative to.
            reads_structure: family name -> the parts of a structure any of which it can be shown; none by default.
            structure_classes: family name -> classes that its structure head tells apart; 0, by default, without one.
        Raises:
            ConfigError: with one line for everything that is wrong.
        """
        lines = problems(config, load_schema("config"))
        if lines:
            raise ConfigError(lines)
        self.root = Path(root)
        self.config = {**DEFAULTS, **config}
        for key, default in DEFAULTS.items():
            if isinstance(default, dict):
                self.config[key] = {**default, **config.get(key, {})}
        if "effects" in config:
            effects = {**EFFECT_DEFAULTS, **config["effects"]}
            for key in ("inputs", "skips"):
                effects[key] = {**EFFECT_DEFAULTS[key], **config["effects"].get(key, {})}
            if effects["skips"].get("parity"):
                effects["skips"] = {**EFFECT_DEFAULTS["skips"], **PARITY_DEFAULTS, **config["effects"]["skips"]}
            self.config["effects"] = effects
        if "geometry" in config:
            self.config["geometry"] = {**GEOMETRY_DEFAULTS, **config["geometry"]}
        if "ablation" in config:
            ablation = {**ABLATION_DEFAULTS, **config["ablation"]}
            ablation["inputs"] = {**ABLATION_DEFAULTS["inputs"], **config["ablation"].get("inputs", {})}
            self.config["ablation"] = ablation
        if "fitness" in config:
            self.config["fitness"] = {**FITNESS_DEFAULTS, **config["fitness"]}
        for section, defaults in (
            ("attribution", ATTRIBUTION_DEFAULTS),
            ("tuned_lens", TUNED_LENS_DEFAULTS),
            ("structure_heads", STRUCTURE_HEAD_DEFAULTS),
        ):
            if section in config:
                own = config[section]
                inputs = {**defaults["inputs"], **own.get("inputs", {})}
                self.config[section] = {**defaults, **own, "inputs": inputs}
        if "probes" in config:
            tasks = [*PROBES_OF_STRUCTURES] if "structures" in config else []
            tasks += ["homology"] if "families" in config["probes"] else []
            self.config["probes"] = {"tasks": tasks, **PROBE_DEFAULTS, **config["probes"]}
        figures = list(figures)
        self.config.setdefault("figures", figures)
        self.config["inputs"] = {**INPUT_DEFAULTS, **config.get("inputs", {})}
        self.config.setdefault("nulls", [dict(null) for null in NULL_DEFAULTS])
        for key in ("sources", "datasets"):  # a study that asks for choices alone needs neither
            self.config.setdefault(key, [])
        self.sources, self.datasets = {}, {}
        self.choices: dict[str, dict[str, object]] = {}
        self.training = {**TRAINING_DEFAULTS, **config["training"]} if "training" in config else None
        self.structures: list[Entry] = []
        self.left_out: list[str] = []
        self._reads = {name: tuple(parts) for name, parts in (reads_structure or {}).items()}
        self._classes = dict(structure_classes or {})
        self._check_sources()
        for line in self._check(families, figures):
            lines.append(line)
        if lines:
            raise ConfigError(lines)

    def _check_sources(self) -> None:
        lines = []
        for kind, into in (("sources", self.sources), ("datasets", self.datasets)):
            for item in self.config[kind]:
                if item["name"] in into:
                    lines.append(f"{kind}: {item['name']!r} stands twice")
                into[item["name"]] = dict(item)
        if lines:
            raise ConfigError(lines)

    def _check(self, families: Mapping[str, str], figures: list[str]) -> list[str]:
        lines = []
        fetched: dict[str, str] = {}  # file name in the folder of downloads -> source
        for name, source in self.sources.items():
            url = source["url"]
            if name == FROM_STRUCTURES:
                lines.append(
                    f"sources: {name!r} is what data sets call the sequences of the section structures; choose another"
                )
            if "://" not in url and not (self.root / url).is_file():
                lines.append(f"sources.{name}.url: no file {url}; give a path that exists, file:// or https://")
            elif "://" in url and url.split("://")[0] not in ("file", "http", "https"):
                lines.append(f"sources.{name}.url: {url!r}; expected a path, file://, http:// or https://")
            elif "://" in url and not _FILE_NAME.fullmatch(Path(url).name):
                lines.append(
                    f"sources.{name}.url: {url!r}; expected an address that ends in a file name: letters, digits, '.', "
                    "'_' and '-'"
                )
            elif "://" in url and fetched.setdefault(Path(url).name, name) != name:
                lines.append(
                    f"sources.{name}.url: {url!r} and that of {fetched[Path(url).name]} end in the same name; expected "
                    "another: give one of them by the path of its file"
                )
        drawn = [(f"datasets.{name}", d) for name, d in self.datasets.items()]
        if self.training:
            drawn.append(("training", self.training))
        for where, item in drawn:
            if where != "training" and item["source"] == FROM_STRUCTURES:
                if "structures" not in self.config:
                    lines.append(f"{where}.source: {FROM_STRUCTURES!r} needs a section structures, and there is none")
            elif item["source"] not in self.sources:
                lines.append(f"{where}.source: no source {item['source']!r}; there are: {_list(self.sources)}")
        window = self.config["compute"]["batch_window"]
        for name, dataset in self.datasets.items():
            self.datasets[name] = dataset = {**DATASET_DEFAULTS, **dataset}
            if "shard_size" in dataset and "shard_tokens" in dataset:
                lines.append(f"datasets.{name}: shard_size and shard_tokens both say how large a shard is; give one")
            lengths = {key: dataset[key] for key in ("min_length", "max_length")}
            dataset.setdefault(
                "shard_size", shard_size_of(dataset.get("shard_tokens", SHARD_TOKENS), window, **lengths)
            )
            lines += _uncut(f"datasets.{name}", dataset["shard_size"], dataset["size"], window)
            if dataset["size"] > dataset["reserve"]:
                lines.append(
                    f"datasets.{name}.size: {dataset['size']} is above reserve {dataset['reserve']}; raise reserve "
                    "(which reads the source again and renews the data set)"
                )
            if dataset["part"] == "held_out":
                if not self.training:
                    lines.append(f"datasets.{name}.part: 'held_out' needs a training section, and there is none")
                elif dataset["source"] == FROM_STRUCTURES and self.training["structures"]:
                    pass  # the pool holds them
                elif self.training["source"] != dataset["source"]:
                    lines.append(
                        f"datasets.{name}.part: 'held_out' is a part of training.source "
                        f"({self.training['source']}), not of {dataset['source']!r}"
                    )
        if not self.datasets and not self.config.get("choices"):
            lines.append("datasets: there is none, and no section choices: nothing to measure; name a data set")
        for where, item in drawn:
            if item.get("min_length", 1) > item.get("max_length", math.inf):
                lines.append(f"{where}: min_length {item['min_length']} is above max_length {item['max_length']}")
        self.models, found = {}, []
        sheet: dict[str, dict[str, object]] | None = None
        sheet_path = self.root / self.config["models_sheet"]
        for i, entry in enumerate(self.config["models"]):
            where = f"models[{i}]"
            if isinstance(entry, str):
                if sheet is None:
                    sheet = read_models(sheet_path)
                if entry not in sheet:
                    close = difflib.get_close_matches(entry, sheet, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"its models: {_list(sheet)}"
                    found.append(f"{where}: no model {entry!r} in {self.config['models_sheet']}; {hint}")
                    continue
                entry = sheet[entry]
            elif sheet is None and ("hub" in entry or "archive" in entry) and sheet_path.is_file():
                sheet = read_models(sheet_path)
            model = {"display_name": entry["model"], "dtype": "float32", **entry}
            if model["family"] not in families:
                close = difflib.get_close_matches(model["family"], families, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are: {_list(families)}"
                found.append(f"{where}.family: no family {model['family']!r}; {hint}")
                continue
            model["objective"] = families[model["family"]]
            if model["model"] in self.models:
                found.append(f"{where}.model: {model['model']!r} stands twice")
            if line := self._licence_problem(where, model, sheet):
                found.append(line)
            if "path" in model and not (self.root / model["path"]).exists():
                found.append(f"{where}.path: no such folder: {model['path']}")
            if "recipe" in model and not self.training:
                found.append(f"{where}.recipe: a model to be trained needs a training section, and there is none")
            if "recipe" in model and model["recipe"]["d_model"] % model["recipe"]["n_heads"]:
                found.append(
                    f"{where}.recipe: d_model {model['recipe']['d_model']} is not a multiple of n_heads "
                    f"{model['recipe']['n_heads']}"
                )
            self.models[model["model"]] = model
        lines += found
        for name, dataset in self.datasets.items():
            for model in dataset.get("models", []):
                if model not in self.models and not found:
                    close = difflib.get_close_matches(model, self.models, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"its models: {_list(self.models)}"
                    lines.append(f"datasets.{name}.models: no model {model!r} in this study; {hint}")
        for figure in self.config["figures"]:
            if figure not in figures:
                close = difflib.get_close_matches(figure, figures, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are: {_list(figures)}"
                lines.append(f"figures: no figure {figure!r}; {hint}")
        if self.training and self.training["structures"] and "structures" not in self.config:
            lines.append("training.structures: needs a section structures, and there is none")
        for family, path in self.config.get("structures", {}).get("codes", {}).items():
            where = f"structures.codes.{family}"
            if "codes" not in self._reads.get(family, ()):
                able = [name for name, parts in self._reads.items() if "codes" in parts]
                lines.append(f"{where}: no family that reads codes; they are: {_list(able) or 'none'}")
            if not (self.root / path).is_file():
                lines.append(f"{where}: no file {path}; expected a table of structure_id and codes")
        if "structures" in self.config:
            try:
                self.structures = entries_of(self.config["structures"], self.root)
            except SourceError as error:
                lines += str(error).splitlines()
        if "fitness" in self.config:
            lines += self._check_fitness()
        if "probes" in self.config:
            lines += self._check_probes()
        lines += self._check_conditions()
        if "effects" in self.config and not found:
            lines += self._check_effects()
        lines += self._check_geometry()
        lines += self._check_choices()
        lines += self._check_section("ablation", found)
        lines += self._check_section("attribution", found)
        lines += self._check_section("tuned_lens", found, has_size=False)
        for section in ("effects", "ablation"):
            if section in self.config:
                largest = max((self.section_size(section, name) for name in self.datasets), default=0)
                lines += _uncut(section, self.config[section]["shard_size"], largest, window)
        if "structure_heads" in self.config and not found:
            lines += self._check_structure_heads(window)
        seen = set()
        for null in self.config["nulls"]:
            key = (null["null_model"], null["seed"])
            if key in seen:
                lines.append(f"nulls: {null['null_model']} with seed {null['seed']} stands twice")
            seen.add(key)
        return lines

    def _check_fitness(self) -> list[str]:
        """Return what is wrong with the section ``fitness``."""
        lines, section, seen = [], self.config["fitness"], set()
        for place, assay in enumerate(section["assays"]):
            where = f"fitness.assays[{place}]"
            needed, allowed = ASSAY_FORMATS[assay["format"]]
            keys = set(assay) - {"format"}
            lines += [f"{where}.{key}: missing; format {assay['format']} needs it" for key in sorted(needed - keys)]
            lines += [
                f"{where}.{key}: format {assay['format']} has no such key; it has: {_list(sorted(needed | allowed))}"
                for key in sorted(keys - needed - allowed)
            ]
            for key in sorted(keys & set(ASSAY_FILES)):
                if assay[key] not in self.sources and not (self.root / assay[key]).exists():
                    lines.append(
                        f"{where}.{key}: no source {assay[key]!r} and no such file; there are: {_list(self.sources)}"
                    )
            name = assay.get("assay_id")
            if name in seen:
                lines.append(f"{where}.assay_id: {name!r} stands twice")
            seen |= {name} if name else set()
        for model in section.get("models", []):
            if model not in self.models:
                lines.append(f"fitness.models: no model {model!r} in this study; its models: {_list(self.models)}")
        n_assays = len(section["assays"])
        if all(assay["format"] == "table" for assay in section["assays"]) and n_assays < section["shards"]:
            lines.append(
                f"fitness.shards: {section['shards']} shards for {n_assays} assays; expected at least one assay each"
            )
        if "seq_struct" in section["conditions"] and not self.structures:
            lines.append("fitness.conditions: seq_struct needs a section structures, and there is none")
        return lines

    def _check_effects(self) -> list[str]:
        """Return what is wrong with ``effects.skips``: what its models cannot have, and what figures would look for."""
        skips, where = self.config["effects"]["skips"], "effects.skips"
        lines = []
        if skips.get("parity"):
            others = [name for name, model in self.models.items() if model["objective"] != "ar"]
            if others:
                lines.append(
                    f"{where}.parity: these are conventions of a study of autoregressive models, and there are others: "
                    f"{_list(others)}; leave these models out, or parity"
                )
            unknown = [name for name in skips["pos_sets"] if name not in PARITY_DEFAULTS["pos_sets"]]
            if unknown:
                lines.append(
                    f"{where}.pos_sets: {_list(unknown)}, which parity does not know; expected some of "
                    f"{_list(PARITY_DEFAULTS['pos_sets'])}"
                )
        if lines:
            return lines
        primary: dict[str, list[str]] = {}
        for name, model in self.models.items():
            primary.setdefault(PRIMARY_POSITIONS[model["objective"]], []).append(name)
        figures = [figure for figure in EFFECT_FIGURES if figure in self.config["figures"]]
        needs = [("pos_sets", name, f" (for {_list(models)})", figures) for name, models in primary.items()]
        needs += [("pos_sets", "all", "", [figure for figure in figures if EFFECT_FIGURES[figure]])]
        needs += [("parts", "layer", "", figures), ("ablations", "zero", "", figures)]
        for key, needed, of_whom, users in needs:
            if needed != "zero" and needed != "all" and skips["supporting"]:
                users = [*users, f"{where}.supporting"]
            if users and needed not in skips[key]:
                lines.append(
                    f"{where}.{key}: {_list(skips[key])}; expected {needed}{of_whom} among them, which {_list(users)} "
                    f"read{'s' if len(users) == 1 else ''}: add it, or name in figures those that are to be drawn"
                )
        return lines

    def _check_section(self, section: str, found: list[str], *, has_size: bool = True) -> list[str]:
        """Return what is wrong with the models and the size of an optional section; ``found``: models that failed."""
        own = self.config.get(section, {})
        lines = []
        for model in own.get("models", []):
            if model not in self.models and not found:
                close = difflib.get_close_matches(model, self.models, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"its models: {_list(self.models)}"
                lines.append(f"{section}.models: no model {model!r} in this study; {hint}")
        largest = max((dataset["size"] for dataset in self.datasets.values()), default=0)
        if has_size and own.get("size", 0) > largest:
            lines.append(
                f"{section}.size: {own['size']} proteins, but the largest data set has {largest}; expected at most as "
                "many"
            )
        return lines

    def _check_structure_heads(self, window: int) -> list[str]:
        """Return what is wrong with the section ``structure_heads``; note the models that are left out of it.

        Args:
            window: proteins that may share a batch.
        """
        section = "structure_heads"
        if lines := self._check_section(section, [], has_size=False):
            return lines
        have = [family for family, n in self._classes.items() if n]
        for name in self.config[section].get("models", []):
            if not self._classes.get(self.models[name]["family"]):
                lines.append(
                    f"{section}.models: {name} has no structure head; families that have one: {_list(have) or 'none'}"
                )
        if not set(self.config["inputs"]["conditions"]) - {"seq"}:
            lines.append(
                f"{section}: needs a condition with structure, and inputs.conditions is "
                f"{_list(self.config['inputs']['conditions'])}: add seq_struct or struct"
            )
        if lines:
            return lines
        measured = {name for dataset in self.datasets for name in self.models_in(section, dataset)}
        if not measured:
            lines.append(
                f"{section}: no model with a structure head is shown structures in any data set; expected one of "
                f"{_list(have) or 'none'} in a data set with source {FROM_STRUCTURES!r}"
            )
        read = [name for name in self.datasets if self.models_in(section, name)]
        largest = max((self.section_size(section, name) for name in read), default=0)
        lines += _uncut(section, self.config[section]["shard_size"], largest, window)
        self.left_out += [
            f"model {name}: left out of {section}, it has no structure head or no data set shows it structures"
            for name in self.config[section].get("models", [])
            if name not in measured
        ]
        return lines

    def _check_probes(self) -> list[str]:
        """Return what is wrong with the section ``probes``."""
        lines, section = [], self.config["probes"]
        for model in section.get("models", []):
            if model not in self.models:
                lines.append(f"probes.models: no model {model!r} in this study; its models: {_list(self.models)}")
        of_structures = [task for task in section["tasks"] if task in PROBES_OF_STRUCTURES]
        if of_structures and "structures" not in self.config:
            lines.append(f"probes.tasks: {_list(of_structures)}; these need a section structures, and there is none")
        if "homology" in section["tasks"] and "families" not in section:
            lines.append("probes.tasks: homology needs probes.families, and there is none")
        if not section["tasks"]:
            lines.append("probes: nothing to probe; give a section structures or probes.families")
        if "families" in section and not (self.root / section["families"]["table"]).is_file():
            lines.append(f"probes.families.table: no file {section['families']['table']}; give a path that exists")
        if section["min_length"] > section["max_length"]:
            lines.append(f"probes: min_length {section['min_length']} is above max_length {section['max_length']}")
        n_untrained = sum(null["null_model"] == "randinit" for null in self.config["nulls"])
        if "untrained" in section["controls"] and section["untrained"] > n_untrained:
            lines.append(
                f"probes.untrained: {section['untrained']} networks, but nulls lists {n_untrained} of randinit; list "
                "more, or take untrained out of probes.controls"
            )
        return lines

    def _check_conditions(self) -> list[str]:
        """Return what is wrong with ``inputs.conditions``; note what is left out of a study that measures others."""
        asked = self.config["inputs"]["conditions"]
        lines = []
        if "seq" not in asked:
            lines.append(f"inputs.conditions: {_list(asked)}; expected seq among them: all others are compared with it")
        with_structure = [condition for condition in CONDITIONS if condition in asked and condition != "seq"]
        if not with_structure:
            return lines
        what = f"inputs.conditions: {_list(with_structure)}"
        if not any(dataset["source"] == FROM_STRUCTURES for dataset in self.datasets.values()):
            lines.append(f"{what}: no data set has structures; one with source {FROM_STRUCTURES!r} is needed")
        if not any(self.can_be_shown(model["family"]) for model in self.models.values()):
            able = [family for family in self._reads if self.can_be_shown(family)]
            lines.append(
                f"{what}: no model of this study can be shown a structure of a table of backbones; families that can: "
                f"{_list(able) or 'none'}"
            )
        self.left_out += [
            f"data set {name}: measured under condition seq only, it has no structures (its source is not "
            f"{FROM_STRUCTURES!r})"
            for name, dataset in self.datasets.items()
            if dataset["source"] != FROM_STRUCTURES
        ]
        with_structures = [d for d in self.datasets.values() if d["source"] == FROM_STRUCTURES]
        shown = {name for d in with_structures for name in d.get("models", self.models)}
        for name, model in self.models.items():
            if name not in shown:
                continue
            reads = self._reads.get(model["family"], ())
            if not self.can_be_shown(model["family"]):
                what = f"{' or '.join(reads)}, of which this study has none" if reads else "no structure"
                self.left_out.append(f"model {name}: measured under condition seq only, its family reads {what}")
        return lines

    def _check_choices(self) -> list[str]:
        """Return what is wrong with the section ``choices``, and fill in what it leaves open."""
        lines = []
        for number, given in enumerate(self.config.get("choices", [])):
            where, name = f"choices[{number}]", given["name"]
            choice = {**CHOICE_DEFAULTS, **given}
            choice["label"] = [given["label"]] if isinstance(given["label"], str) else given["label"]
            if name in self.choices:
                lines.append(f"choices: {name!r} stands twice")
            if not (self.root / choice["table"]).is_file():
                lines.append(f"{where}.table: no file {choice['table']}")
            if ("mutant" in given) != ("wild_type" in given):
                lines.append(f"{where}: mutant and wild_type belong together; one of them is missing")
            if "mutant" in given and "sequence" in given:
                lines.append(f"{where}: sequence and mutant; expected one of them")
            fasta = str(given.get("wild_type", "")).rpartition("#")[0]
            if fasta and not (self.root / fasta).is_file():
                lines.append(f"{where}.wild_type: no file {fasta}")
            for model in choice.get("models", []):
                if model not in self.models:
                    close = difflib.get_close_matches(model, self.models, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"its models: {_list(self.models)}"
                    lines.append(f"{where}.models: no model {model!r} in this study; {hint}")
            blocks = choice["truncate"]
            for model in choice.get("models", self.models) if isinstance(blocks, int) else ():
                entry = self.models.get(model, {})
                known = entry.get("n_blocks") or entry.get("recipe", {}).get("n_blocks")
                if known and blocks > int(known):
                    lines.append(
                        f"{where}.truncate: {blocks} blocks, but {model} has {known}; expected at most as many"
                    )
            self.choices[name] = choice
        return lines

    def _check_geometry(self) -> list[str]:
        """Return what is wrong with the section ``geometry``, and fill in its pairs of models."""
        section = self.config.get("geometry")
        if section is None:
            return []
        lines = [
            f"geometry.{key}: no model {name!r} in this study; its models: {_list(self.models)}"
            for key, names in (
                ("models", section.get("models", [])),
                ("pairs", [name for pair in section.get("pairs", []) for name in pair]),
            )
            for name in dict.fromkeys(names)
            if name not in self.models
        ]
        if lines:
            return lines
        measured = [name for name in self.models if name in section.get("models", self.models)]
        for objective in ("mlm", "diffusion"):
            concerned = [name for name in measured if self.models[name]["objective"] == objective]
            if concerned and not self.config["inputs"][objective]["clean"]:
                lines.append(
                    f"geometry: {_list(concerned)} would be looked at with clean inputs, but inputs.{objective}.clean "
                    "is false; set it to true, or name other models in geometry.models"
                )
        anchors = self.config["cache"]["anchors"]
        if "residue" in section["points"] and not anchors:
            lines.append(
                "geometry.points: residue needs anchors, but cache.anchors is 0; raise it, or use pooled alone"
            )
        if "labels" in section and not (self.root / section["labels"]).is_file():
            lines.append(f"geometry.labels: no file {section['labels']}")
        for one, other in section.get("pairs", []):
            if one == other:
                lines.append(f"geometry.pairs: {one!r} is paired with itself; give a shallow and a deep model")
            for name in {one, other} - set(measured):
                lines.append(f"geometry.pairs: {name!r} is not among geometry.models")
        if "pairs" not in section:
            section["pairs"] = self._extremes_of_families(measured)
        return lines

    def _extremes_of_families(self, names: Iterable[str]) -> list[list[str]]:
        """Return the shallowest and the deepest model of each family whose models differ in a depth that is known."""
        families: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            model = self.models[name]
            n_blocks = model.get("n_blocks") or model.get("recipe", {}).get("n_blocks")
            if n_blocks:
                families.setdefault(model["family"], []).append((n_blocks, name))
        extremes = [
            (min(members, key=lambda m: m[0]), max(members, key=lambda m: m[0])) for members in families.values()
        ]
        return [[shallow[1], deep[1]] for shallow, deep in extremes if shallow[0] < deep[0]]

    @property
    def used_sources(self) -> dict[str, dict[str, object]]:
        """Return the sources that a data set, a training or an assay of this study reads, by name."""
        read = [dataset["source"] for dataset in self.datasets.values()]
        is_split = any(dataset["part"] == "held_out" for dataset in self.datasets.values())
        if self.training and (is_split or any("recipe" in model for model in self.models.values())):
            read.append(self.training["source"])
        assays = self.config.get("fitness", {}).get("assays", [])
        read += [assay[key] for assay in assays for key in ASSAY_FILES if key in assay]
        return {name: source for name, source in self.sources.items() if name in read}

    def can_be_shown(self, family: str) -> bool:
        """Return whether this study's tables hold a part of a structure that a family reads."""
        has_codes = family in self.config.get("structures", {}).get("codes", {})
        at_hand = {*BACKBONE_TELLS, "codes"} if has_codes else {*BACKBONE_TELLS}
        at_hand &= set(self.config["inputs"].get("structure_parts", at_hand))
        return bool(set(self._reads.get(family, ())) & at_hand)

    def conditions_of(self, dataset: str, model: str) -> list[str]:
        """Return the conditions under which a model is measured on a data set, in a fixed order."""
        has_structures = self.datasets[dataset]["source"] == FROM_STRUCTURES
        has_structures = has_structures and self.can_be_shown(self.models[model]["family"])
        asked = self.config["inputs"]["conditions"]
        return [condition for condition in CONDITIONS if condition in asked and (condition == "seq" or has_structures)]

    def _licence_problem(
        self, where: str, model: Mapping[str, object], sheet: Mapping[str, Mapping[str, object]] | None
    ) -> str | None:
        """Return what to do before weights that are gated or not for every use are fetched; None if nothing.

        A repository that a row of the sheet names stands under that row's licence in an entry of the config too.
        """
        for row in [model, *(sheet or {}).values()]:
            same = any(str(row.get(k, "")).lower() == str(model[k]).lower() for k in ("hub", "archive") if k in model)
            accepted = self.config["accepted_licences"]
            if same and _must_be_accepted(row) and row["licence"] not in accepted:
                page = f"https://huggingface.co/{row['hub']}" if "hub" in row else row["archive"]
                close = difflib.get_close_matches(str(row["licence"]), accepted, n=1, cutoff=0.8)
                hint = f" (it has {close[0]!r})" if close else ""
                what = "gated" if row.get("gated") else "not for every use"
                return (
                    f"{where}: the weights of {model['model']} are {what}: "
                    f"add {row['licence']!r} to accepted_licences in the config after reading it at {page}{hint}"
                )
        return None

    def models_of(self, dataset: str) -> list[str]:
        """Return the models that are measured on a data set, in the order of the config."""
        chosen = self.datasets[dataset].get("models", self.models)
        return [model for model in self.models if model in chosen]

    def models_in(self, section: str, dataset: str) -> list[str]:
        """Return the models of a data set that a section of the config is about; none without the section."""
        if self.config.get(section) is None:
            return []
        chosen = self.config[section].get("models", self.models)
        if section == "structure_heads":
            chosen = [name for name in chosen if self._has_structure_head(dataset, name)]
        return [model for model in self.models_of(dataset) if model in chosen]

    def structure_classes_of(self, model: str) -> int:
        """Return how many classes the structure head of a model tells apart, 0 without one."""
        return self._classes.get(self.models[model]["family"], 0)

    def _has_structure_head(self, dataset: str, model: str) -> bool:
        """Return whether a model has a structure head, and a data set shows it structures."""
        return self.structure_classes_of(model) > 0 and self.conditions_of(dataset, model) != ["seq"]

    def geometry_pairs(self, dataset: str) -> list[tuple[str, str]]:
        """Return the (shallow, deep) models of a data set between which maps are fitted; none without the section."""
        models = self.models_in("geometry", dataset)
        pairs = self.config["geometry"]["pairs"] if models else []
        return [(one, other) for one, other in pairs if one in models and other in models]

    def section_size(self, section: str, dataset: str) -> int:
        """Return how many proteins of a data set a section measures: its ``size``, or a smaller data set whole."""
        return min(self.config[section]["size"], self.datasets[dataset]["size"])

    def size_in(self, section: str, dataset: str) -> int:
        """Return how many proteins of a data set an optional section measures: a smaller data set whole."""
        return min(self.config[section]["size"], self.datasets[dataset]["size"])

    def proteins_in(self, section: str, dataset: str) -> int:
        """Return how many proteins, the first of the sample, an optional section takes its own from.

        Of the tuned lens a quarter more than would do if clusters had one protein each: it needs some of either side.
        """
        if section != "tuned_lens":
            return self.size_in(section, dataset)
        own = self.config[section]
        wanted = max(own["train"] / (1 - own["held_out"]), own["size"] / own["held_out"])
        return min(math.ceil(1.25 * wanted), self.datasets[dataset]["size"])

    def ranks_in(self, section: str, dataset: str, shard: int) -> tuple[int, int]:
        """Return the first rank of a shard of an optional section and the one after its last."""
        first = shard * self.config[section]["shard_size"]
        return first, min(first + self.config[section]["shard_size"], self.size_in(section, dataset))

    def nulls_in(self, section: str) -> list[dict[str, object]]:
        """Return the null models that an optional section measures: of each kind the first seeds, all by default."""
        own, wanted = self.config[section], []
        for kind in own["null_models"]:
            of_kind = [null for null in self.config["nulls"] if null["null_model"] == kind]
            wanted += of_kind[: own.get("null_seeds", len(of_kind))]
        return wanted

    def inputs_in(self, section: str, objective: str) -> dict[str, object]:
        """Return the views of an objective under which an optional section measures: the study's, with its changes."""
        own = self.config[section]["inputs"].get(objective, {})
        return {objective: {**self.config["inputs"][objective], **own}}

    def effects_size(self, dataset: str) -> int:
        """Return on how many proteins of a data set skip effects are measured: a smaller data set is measured whole."""
        return self.section_size("effects", dataset)

    def n_shards(self, dataset: str) -> int:
        """Return how many shards a data set has; the last may be smaller."""
        return math.ceil(self.datasets[dataset]["size"] / self.datasets[dataset]["shard_size"])

    def ranks(self, dataset: str, shard: int) -> tuple[int, int]:
        """Return the first rank of a shard and the one after its last."""
        size, shard_size = self.datasets[dataset]["size"], self.datasets[dataset]["shard_size"]
        return shard * shard_size, min((shard + 1) * shard_size, size)
