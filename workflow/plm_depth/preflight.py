"""What a study will cost, and whether this machine can finish it: said before any expensive job.

    snakemake preflight                                   the study of the config, what is still to be done of it
    python -m plm_depth.preflight --config FILE [--offline] [--elsewhere]

The same is said when a study starts, of the jobs that will run. A check that ``blocks`` ends it there, with the mend;
``compute.preflight: warn`` in the config says the same and goes on. No model library is loaded and nothing is fetched;
servers are only asked whether what must be fetched is there.

Hours are operations over a rate. On a GPU the rate is assumed (docs/performance.md); on a CPU it is the share that
sweeps reach of the product rate that is measured here. Small models cost more than that, in calls instead of products.
"""

import argparse
import copy
import importlib.metadata
import os
import platform
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from plm_depth.activations.cost import hours
from plm_depth.config import ConfigError, Study
from plm_depth.machine import Machine, machine
from plm_depth.models.registry import FAMILIES
from plm_depth.prices import Price, prices, unknown_sizes

GPU_RATES = {4: 25e12, 2: 250e12}  # operations a second of a data-centre GPU by bytes of a weight, TF32 off
CPU_SHARE = 0.8  # of the product rate that a sweep reaches on a CPU, measured
START_UP = 4.0  # seconds of a job before its first product
MARGIN = 0.5e9  # bytes that a study leaves free on a disk
LONG = 72.0  # hours on a CPU beyond which a GPU is recommended
TIMEOUT = 8.0  # seconds to wait for a server
HUB = "https://huggingface.co"
PINS = Path(__file__).parents[2] / "envs" / "requirements.in"
OLDEST_PYTHON = (3, 11)


class PreflightError(ValueError):
    """A study that cannot finish here: every check that blocks, with its mend."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``state`` is ok, warning, blocks or unknown; ``mend`` says what to do about it."""

    name: str
    state: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """What was found: the prices of all jobs and of those that are due, the rates behind the hours, and the checks."""

    study: str
    priced: list[Price]
    due: list[Price]
    rates: Mapping[int, float]
    unit: str
    checks: list[Check] = field(default_factory=list)

    @property
    def blocking(self) -> list[Check]:
        """Return the checks that say that the study cannot finish."""
        return [check for check in self.checks if check.state == "blocks"]

    def hours_of(self, due: Iterable[Price]) -> float:
        """Return the hours of jobs, one after the other."""
        return sum(
            hours(price.cost, rate=self.rates[price.itemsize]) + (START_UP / 3600 if price.cost.flops else 0)
            for price in due
        )


# ----------------------------------------------------------------------------------------------------------------
# Checks


def look(
    study: Study,
    *,
    is_due: Callable[[str], bool] | None = None,
    on: Machine | None = None,
    is_local: bool = True,
    offline: bool = False,
    ask: Callable[[str, Mapping[str, str]], "Answer"] | None = None,
) -> Report:
    """Return prices and checks of a study.

    Args:
        is_due: whether the job that makes an output is to run; by default if the output is not there.
        on: the machine; this one by default.
        is_local: whether jobs run on this machine; what another machine lacks cannot be seen from here and only warns.
        offline: ask no server.
        ask: how a server is asked.
    """
    is_due = is_due or (lambda path: not (study.root / path).exists())
    on = on or machine()
    compute = study.config["compute"]
    uses_gpu = compute["device"] != "cpu" and (bool(on.gpus) or compute["device"] == "cuda" or not is_local)
    priced = prices(study if uses_gpu else _on_cpu(study))
    due = [price for price in priced if is_due(price.output)]
    cpu = CPU_SHARE * on.product_rate * compute["threads"]
    rates, unit = (GPU_RATES, "GPU hours") if uses_gpu else ({4: cpu, 2: cpu}, "hours")
    found, answers = _network(study, due, offline=offline, ask=ask or head)
    due = [_with_size(price, answers.get(price.url)) for price in due]
    report = Report(study.config["study"], priced, due, rates, unit)
    report.checks.extend(
        [
            *_versions(),
            *_sizes(study),
            *_disk(study, due, on),
            *_memory(due, on, is_local),
            *_device(study, due, on, is_local, report.hours_of(due)),
            *_gated(study, due),
            *_pins(study, due),
            *found,
        ]
    )
    return report


def _on_cpu(study: Study) -> Study:
    """Return the study whose passes run in the memory of the machine."""
    there = copy.copy(study)
    there.config = {**study.config, "compute": {**study.config["compute"], "device": "cpu"}}
    return there


def _with_size(price: Price, answer: "Answer | None") -> Price:
    if answer is None or answer.n_bytes is None or price.fetched_bytes:
        return price
    return Price(price.rule, price.output, price.model, url=price.url, fetched_bytes=answer.n_bytes,
                 disk_bytes=answer.n_bytes)  # fmt: skip


def _versions() -> list[Check]:
    """Compare Python and the pinned packages with what is installed."""
    here = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < OLDEST_PYTHON:
        return [Check("versions", "blocks", f"Python {here}", "Python 3.11 or newer is needed: make PYTHON=python3.11")]
    if not PINS.is_file():
        return [Check("versions", "unknown", f"Python {here}; no {PINS.name} beside the workflow to compare with")]
    other = []
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if pinned := re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()):
            name, wanted = pinned.groups()
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed = "missing"
            if installed.split("+")[0] != wanted:
                other.append(f"{name} {installed} (pinned {wanted})")
    if other:
        return [Check("versions", "warning", f"Python {here}; {'; '.join(other)}", "make setup installs the pins")]
    return [Check("versions", "ok", f"Python {here}, all packages as pinned")]


def _sizes(study: Study) -> list[Check]:
    names = unknown_sizes(study)
    if not names:
        return []
    found = f"no size of {', '.join(names)} is known, they are not in the sums"
    return [Check("sizes", "warning", found, "name the model by its row of the sheet of models, or add a row")]


def _disk(study: Study, due: Sequence[Price], on: Machine) -> list[Check]:
    needed: dict[int, float] = defaultdict(float)
    free, where = {}, {}
    for price in due:
        device, free_there = on.free_bytes(study.root / price.output)
        needed[device] += price.disk_bytes
        free[device] = free_there
        where.setdefault(device, price.output.split("/")[0])
    checks = []
    for device, n_bytes in needed.items():
        said = f"{amount(n_bytes)} to be written, {amount(free[device])} free where {where[device]}/ lies"
        if n_bytes + MARGIN > free[device]:
            mend = "make room, put results/ and resources/ on a larger disk (a link will do), or lower datasets[].size"
            checks.append(Check("disk", "blocks", said, mend))
        else:
            checks.append(Check("disk", "ok", said))
    return checks


def _memory(due: Sequence[Price], on: Machine, is_local: bool) -> list[Check]:
    largest = max(due, key=lambda price: price.memory_bytes, default=None)
    if largest is None or not largest.memory_bytes:
        return []
    said = f"{amount(largest.memory_bytes)} for {largest.model}, {amount(on.memory_bytes)} here"
    if largest.memory_bytes <= on.memory_bytes:
        return [Check("memory", "ok", said)]
    mend = "leave the model out, give it dtype bfloat16, lower compute.memory_gb, or run on a machine with more memory"
    return [Check("memory", "blocks" if is_local else "warning", said, mend)]


def _device(study: Study, due: Sequence[Price], on: Machine, is_local: bool, total_hours: float) -> list[Check]:
    asked = study.config["compute"]["device"]
    passes = [price for price in due if price.device_bytes]
    if asked == "cpu" or not passes:
        return []
    if not is_local:
        return [Check("device", "unknown", f"device {asked}: jobs run elsewhere, their GPUs cannot be seen from here")]
    if not on.gpus:
        if asked == "cuda":
            mend = "run where there is one, or set compute.device to auto or cpu"
            return [Check("device", "blocks", "device cuda, but no GPU is seen here (nvidia-smi)", mend)]
        said = f"no GPU is seen here: about {duration(total_hours)} on the CPU"
        mend = "run where there is a GPU, or take fewer proteins and smaller models" if total_hours > LONG else ""
        return [Check("device", "warning" if total_hours > LONG else "ok", said, mend)]
    name, there = max(on.gpus, key=lambda gpu: gpu[1])
    largest = max(passes, key=lambda price: price.device_bytes)
    said = f"{len(on.gpus)} x {name}, {amount(there)}; {largest.model} needs {amount(largest.device_bytes)}"
    if largest.device_bytes > there:
        mend = "lower compute.token_budget, give the model dtype bfloat16, leave it out, or use a GPU with more memory"
        return [Check("device", "blocks", said, mend)]
    return [Check("device", "ok", said)]


def _gated(study: Study, due: Sequence[Price]) -> list[Check]:
    """Look for a login where gated weights must be fetched; whether their licence is accepted was checked before."""
    waiting = [p.model for p in due if p.rule == "download_checkpoint" and study.models[p.model].get("gated")]
    if not waiting:
        return []
    names = ", ".join(waiting)
    if _token():
        return [Check("licences", "ok", f"{names}: gated, accepted in the config, and a login is there")]
    mend = "accept the licence on the model's page, then log in (hf auth login, or HF_TOKEN)"
    return [Check("licences", "blocks", f"{names}: gated, but there is no login for the hub", mend)]


def unpinned(study: Study) -> list[str]:
    """Return the models that are fetched without a revision or a digest: the same address may give others later."""
    return [
        name
        for name, entry in study.models.items()
        if ("hub" in entry and not {"revision", "sha256"} & set(entry))
        or ("archive" in entry and "archive_sha256" not in entry)
    ]


def _pins(study: Study, due: Sequence[Price]) -> list[Check]:
    """Name every model to be fetched or measured that is not pinned, a line each."""
    concerned = {price.model for price in due}
    checks = []
    for name in (name for name in unpinned(study) if name in concerned):
        entry = study.models[name]
        of_hub = "hub" in entry
        what = f"{entry['hub']} has no revision" if of_hub else f"{entry['archive']} has no digest"
        key = "revision" if of_hub else "archive_sha256"
        found = f"{name} is not pinned: {what}; what it is by then is fetched"
        checks.append(Check("pins", "warning", found, f"write what was found into {key} once it has been fetched"))
    return checks


def _token() -> str | None:
    import huggingface_hub

    return huggingface_hub.get_token()


# ----------------------------------------------------------------------------------------------------------------
# Servers


@dataclass(frozen=True)
class Answer:
    """What a server said of an address: "" if the file is there, else why not; and its size where it states one."""

    problem: str = ""
    n_bytes: int | None = None
    is_reachable: bool = True


def head(url: str, headers: Mapping[str, str]) -> Answer:
    """Ask a server about a file without fetching it; for file:// look at the disk."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        return Answer(n_bytes=path.stat().st_size) if path.is_file() else Answer(f"no file {path}")
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "plm-depth"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a login is for this server alone
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length", "")
            return Answer(n_bytes=int(length) if length.isdecimal() else None)
    except urllib.error.HTTPError as error:
        error.close()
        code = error.headers.get("X-Error-Code", "")
        if error.code in (405, 501) or code == "EntryNotFound":  # no HEAD there; a repository without this one file
            return Answer()
        return Answer(f"the server says {error.code} {code or error.reason}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Answer(f"no connection ({reason})", is_reachable=False)


def _network(
    study: Study, due: Sequence[Price], *, offline: bool, ask: Callable[[str, Mapping[str, str]], Answer]
) -> tuple[list[Check], dict[str, Answer]]:
    """Ask for everything that is due from elsewhere; a host that does not answer is asked once."""
    wanted = list(dict.fromkeys(price.url for price in due if price.url))
    if not wanted:
        return [], {}
    if offline:
        return [Check("network", "unknown", f"{len(wanted)} files or checkpoints to fetch; no server was asked")], {}
    answers: dict[str, Answer] = {}
    silent: dict[str, Answer] = {}
    bad: dict[str, str] = {}
    for price in {p.url: p for p in due if p.url}.values():
        url, headers = _address(study, price)
        host = urllib.parse.urlsplit(url).netloc
        answer = silent.get(host) or ask(url, headers)
        if not answer.is_reachable:
            silent[host] = answer
        # The size of a repository is not that of its config.json.
        answers[price.url] = Answer(answer.problem, None if price.model else answer.n_bytes, answer.is_reachable)
        if answer.problem:
            bad[url if answer.is_reachable else host] = answer.problem
    if not bad:
        return [Check("network", "ok", f"{len(wanted)} addresses to fetch from answer")], answers
    mend = (
        "check address and login; where there is no network, run `snakemake prefetch` on a node that has one and share "
        "resources/, or give paths in the config"
    )
    said = "; ".join(f"{where}: {problem}" for where, problem in bad.items())
    return [Check("network", "blocks", said, mend)], answers


def _address(study: Study, price: Price) -> tuple[str, dict[str, str]]:
    """Return the address to ask about, and the headers of a login where it is the hub's."""
    if not price.url.startswith("hub:"):
        return price.url, {}
    entry = study.models[price.model]
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return f"{endpoint}/{entry['hub']}/resolve/{entry.get('revision', 'main')}/config.json", headers


# ----------------------------------------------------------------------------------------------------------------
# In words


def amount(n_bytes: float) -> str:
    """Return bytes as 12 MB, 3.4 GB or 1.2 TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def duration(n_hours: float) -> str:
    """Return hours as 12 s, 5 min, 3.4 h or 12 days."""
    if n_hours < 1 / 60:
        return f"{n_hours * 3600:.0f} s"
    if n_hours < 1:
        return f"{n_hours * 60:.0f} min"
    return f"{n_hours:.3g} h" if n_hours < 100 else f"{n_hours / 24:.3g} days"


def table(report: Report, key: Callable[[Price], str], title: str) -> list[str]:
    """Return the lines of a table of what is due, one a group in the order of the data, and the sum."""
    groups: dict[str, list[Price]] = {}
    for price in report.priced:
        groups.setdefault(key(price), [])
    for price in report.due:
        groups[key(price)].append(price)
    n_all = defaultdict(int)
    for price in report.priced:
        n_all[key(price)] += 1
    rows = [(name, own, n_all[name]) for name, own in groups.items() if own]
    rows.append(("together", report.due, len(report.priced)))
    width = max(len(title), *(len(name) for name, _, _ in rows))
    lines = [
        f"{title:{width}}  {'jobs due':>11}  {'TFLOP':>9}  {report.unit:>9}  {'writes':>8}  {'fetches':>8}  "
        f"{'memory':>8}"
    ]
    for name, own, n in rows:
        flops = sum(price.cost.flops for price in own)
        fetched = sum(price.fetched_bytes for price in own)
        asks = any(price.url and not price.fetched_bytes for price in own)
        lines.append(
            f"{name:{width}}  {f'{len(own)} of {n}':>11}  {f'{flops / 1e12:.3g}':>9}  "
            f"{duration(report.hours_of(own)):>9}  {amount(sum(p.disk_bytes for p in own)):>8}  "
            f"{(amount(fetched) if fetched else '-') + ('+' if asks else ''):>8}  "
            f"{amount(max((p.memory_bytes for p in own), default=0)):>8}"
        )
    return lines


def text(report: Report, *, by_model: bool = True) -> str:
    """Return the report for people: what is due by stage and by model, and every check."""
    lines = [f"Study {report.study}: what is still to be done, estimated"]
    if report.due:
        lines += ["", *table(report, lambda price: price.rule, "stage")]
        if by_model:
            lines += ["", *table(report, lambda price: price.model or "(no model)", "model")]
        lines += [
            "",
            f"{report.unit}: one job after the other, at {report.rates[4]:.2g} operations a second with float32 "
            f"weights and {report.rates[2]:.2g} with half-precision ones.",
            "A model's download is taken at four bytes a parameter, at most; +: more, of a size that is not known.",
        ]
    else:
        lines.append("nothing expensive: every output of a priced stage is there.")
    lines.append("")
    for check in report.checks:
        state = {"blocks": "BLOCKS", "warning": "warning"}.get(check.state, check.state)
        lines.append(f"{state:8} {check.name}: {check.found}" + (f". {_sentence(check.mend)}" if check.mend else ""))
    return "\n".join(lines).rstrip()


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words[0].islower() else f"{words}."


def blocked(report: Report, *, say_how_to_go_on: bool = True) -> str:
    """Return the message of a study that cannot finish."""
    lines = [f"study {report.study} cannot finish here; what blocks:"]
    lines += [f"  - {check.name}: {check.found}. {_sentence(check.mend)}" for check in report.blocking]
    if say_how_to_go_on:
        lines.append("To start nevertheless set compute.preflight to warn in the config.")
    return "\n".join(lines)


def at_start(
    study: Study, outputs: Iterable[str] | None, *, is_local: bool, say: Callable[[str], None], offline: bool = False
) -> None:
    """Say what the jobs of a run cost, before the first of them.

    Args:
        outputs: of all jobs that will run; None: only the report is wanted, on all that is not there yet.
        is_local: whether they run on this machine.
        say: where the report goes.
        offline: ask no server.

    Raises:
        PreflightError: the study cannot finish, and the config does not ask for a mere warning.
    """
    mode = study.config["compute"]["preflight"] if outputs is not None else "block"
    if mode == "off":
        return
    is_due = None
    if outputs is not None:
        is_due = set(outputs).__contains__
        if not any(is_due(price.output) for price in prices(study)):
            return
    report = look(study, is_due=is_due, is_local=is_local, offline=offline)
    say(text(report, by_model=outputs is None))
    if report.blocking and mode == "block":
        raise PreflightError(blocked(report, say_how_to_go_on=outputs is not None))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.preflight", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, type=Path, help="the config of the study, YAML or JSON, whole")
    parser.add_argument("--offline", action="store_true", help="ask no server")
    parser.add_argument("--elsewhere", action="store_true", help="jobs run on other machines than this one")
    options = parser.parse_args(argv)
    try:
        config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        study = Study(
            config,
            families={name: entry.objective for name, entry in FAMILIES.items()},
            # Which figures there are is known to the workflow; they cost nothing.
            figures=config.get("figures", []) if isinstance(config, dict) else [],
            reads_structure={name: entry.reads_structure for name, entry in FAMILIES.items()},
            structure_classes={name: entry.structure_classes for name, entry in FAMILIES.items()},
        )
        at_start(study, None, is_local=not options.elsewhere, say=print, offline=options.offline)
    except (PreflightError, ConfigError) as error:
        raise SystemExit(f"preflight: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SystemExit(f"preflight: {options.config}: not a readable YAML file ({error}); correct it") from None


if __name__ == "__main__":
    main()
